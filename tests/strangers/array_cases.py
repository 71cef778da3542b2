"""Hostile arrays, IDX files and series."""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
from pathlib import Path

import numpy as np

from tests.strangers import building as b
from tests.strangers.building import TERA
from tests.strangers.cases import Case, Maker, beside, file, link, pipe, sparse

LABELS = b.npy((4,), data=bytes([0, 1, 0, 1]))
#: Four images of 4 x 4 zeros.
IMAGES = b.npy((4, 4, 4), data=bytes(64))
IDX_IMAGES, IDX_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
SERIES = "Set_TRAIN.tsv"


def folder(images: bytes, labels: bytes = LABELS) -> Maker:
    return beside(file("images.npy", images), file("labels.npy", labels))


def labelled(descr: str, data: bytes) -> Maker:
    """Good images with these labels."""
    return folder(IMAGES, b.npy((4,), descr, data))


def archive(images: bytes, kind: int = zipfile.ZIP_DEFLATED) -> Maker:
    return file("set.npz", b.npz({"images": images, "labels": LABELS}, kind))


def idx(images: bytes, suffix: str = "") -> Maker:
    labels = file(IDX_LABELS, b.idx((4,), bytes([0, 1, 0, 1])))
    return beside(file(IDX_IMAGES + suffix, images), labels)


def ucr(content: bytes) -> Maker:
    return file(SERIES, content, inside=True)


def two_of_one_name() -> bytes:
    content = b.npz({"images": IMAGES, "labels": LABELS})
    return content.replace(b"labels.npy", b"images.npy")


def claims() -> bytes:
    """An archive whose directory says that the first member unpacks to 4 GB."""
    content = bytearray(b.npz({"images": IMAGES, "labels": LABELS}))
    place = content.index(b"PK\1\2")
    content[place + 24 : place + 28] = struct.pack("<I", 2**32 - 2)
    return bytes(content)


def packed_claims() -> bytes:
    """An archive of 700 bytes that says of the first member: 2 GiB, packed in 4."""
    images = b.npy((2**27, 4, 4))
    content = bytearray(b.npz({"images": images, "labels": LABELS}))
    place = content.index(b"PK\1\2")
    content[place + 20 : place + 28] = struct.pack("<II", 2**32 - 16, len(images) + 2**31)
    return bytes(content)


def link_out(folder: Path) -> Path:
    """The images are a link to an array beside the folder."""
    secret = folder / "secret.npy"
    secret.write_bytes(IMAGES)
    own = folder / "data"
    own.mkdir()
    (own / "labels.npy").write_bytes(LABELS)
    (own / "images.npy").symlink_to(secret)
    return own


def with_nan() -> bytes:
    values = np.linspace(0, 1, 64, dtype=np.float32)
    values[20] = np.nan
    return b.npy((4, 4, 4), "'<f4'", values.tobytes())


CASES = [
    Case(
        "npy: terabytes", "data", folder(b.npy((TERA, 4, 4))), "announces 16,000,000,000,000 bytes"
    ),
    Case("npy: 2**128 values", "data", folder(b.npy((2**64, 2**64))), "images.npy: cannot be read"),
    Case(
        "npy: negative shape",
        "data",
        folder(b.npy((-4, 4, 4), data=bytes(64))),
        "announces the shape",
    ),
    Case(
        "npy: objects", "data", folder(b.npy((4,), "'|O'", b"cposix\nsystem\n")), "Python objects"
    ),
    Case(
        "npy: records of objects",
        "data",
        folder(b.npy((4,), "[('a', '|O')]", bytes(64))),
        "Python objects",
    ),
    Case(
        "npy: records",
        "data",
        folder(b.npy((4,), "[('a', '<f4'), ('b', '|u1')]", bytes(20))),
        "got images of dtype",
    ),
    Case("npy: values of no size", "data", folder(b.npy((4, 4, 4), "'|V0'")), "announces 0 bytes"),
    Case(
        "npy: header of code",
        "data",
        folder(b.npy_header("__import__('os').mkdir('canary')")),
        "header is damaged",
    ),
    Case(
        "npy: header nested deep",
        "data",
        folder(b.npy_header("(" * 9000 + ")" * 9000)),
        "header is damaged",
    ),
    Case(
        "npy: NaN",
        "data",
        folder(with_nan()),
        "images.npy: 1 of 4 images hold values that are not finite",
    ),
    Case(
        "npy: labels of NaN",
        "data",
        labelled("'<f8'", np.array([0, 1, np.nan, 1]).tobytes()),
        "not whole numbers",
    ),
    Case("npy: labels beyond Unicode", "data", labelled("'<U1'", b"\xff" * 16), "no valid Unicode"),
    Case(
        "npy: labels of half a pair",
        "data",
        labelled("'<U1'", b"\x00\xd8\0\0" * 4),
        "no valid Unicode",
    ),
    Case(
        "npy: labels beyond int64",
        "data",
        labelled("'<u8'", np.array([2**64 - 1, 2**63, 1, 0], np.uint64).tobytes()),
        "got the label 18446744073709551615",
    ),
    Case("npy: labels of no text", "data", labelled("'|S1'", b"\xff" * 4), "no valid Unicode"),
    Case("npy: columns first", "data", folder(b.npy((4, 4, 4), data=bytes(64), fortran=True)), ""),
    Case("npy: link out of the folder", "data", link_out, "outside of"),
    Case(
        "npy: terabytes of holes",
        "data",
        beside(file("labels.npy", LABELS), sparse("images.npy", 4 * TERA + 128, b.npy((TERA, 4)))),
        "of holes",
    ),
    Case("npz: bomb", "data", archive(b.npy((4, 4, 4), data=bytes(2**26))), "and holds 67,108,864"),
    Case(
        "npz: terabytes", "data", archive(b.npy((TERA, 4, 4))), "announces 16,000,000,000,000 bytes"
    ),
    Case("npz: objects", "data", archive(b.npy((4,), "'|O'", bytes(64))), "Python objects"),
    Case("npz: packed by LZMA", "data", archive(IMAGES, zipfile.ZIP_LZMA), "packed in another way"),
    Case("npz: claims of the directory", "data", file("set.npz", claims()), "more than"),
    Case(
        "npz: claims of packed bytes",
        "data",
        file("set.npz", packed_claims()),
        "bytes of packed arrays and has",
    ),
    Case("npz: two of one name", "data", file("set.npz", two_of_one_name()), "two arrays named"),
    Case(
        "npz: names that leave it",
        "data",
        file("set.npz", b.npz({"../../images": IMAGES, "/etc/labels": LABELS})),
        "found ../../images",
    ),
    Case("npz: no zip", "data", file("set.npz", b"PK\3\4" + bytes(99)), "cannot be read as a .npz"),
    Case("npz: no array", "data", archive(b"text"), "header is damaged"),
    Case("npz: pipe", "data", pipe("set.npz"), "got the file"),
    Case("idx: terabytes", "data", idx(b.idx((2**31, 2**31, 2**31), b"")), "its header announces"),
    Case("idx: a value more", "data", idx(b.idx((4, 4, 4), bytes(65))), "holds 65 bytes"),
    Case(
        "idx: gzip of terabytes",
        "data",
        idx(gzip.compress(b.idx((2**20, 2**10, 2**10), b"")), ".gz"),
        "more than",
    ),
    Case(
        "idx: gzip bomb",
        "data",
        idx(gzip.compress(b.idx((4, 4, 4), bytes(2**26))), ".gz"),
        "holds more than 64 bytes",
    ),
    Case(
        "idx: half a gzip",
        "data",
        idx(gzip.compress(b.idx((4, 4, 4), os.urandom(64)))[:-20], ".gz"),
        "not a complete gzip",
    ),
    Case(
        "idx: NaN",
        "data",
        idx(b.idx((4, 4, 4), np.full(64, np.nan, ">f4").tobytes(), 13)),
        "not finite",
    ),
    Case("idx: pipe", "data", beside(pipe(IDX_IMAGES), file(IDX_LABELS, b"")), "is a pipe"),
    Case(
        "idx: /dev/zero",
        "data",
        beside(link(IDX_IMAGES + ".gz", "/dev/zero"), file(IDX_LABELS, b"")),
        "is a device",
    ),
    Case(
        "idx: link out of the folder",
        "data",
        beside(link(IDX_IMAGES, "/etc/passwd"), file(IDX_LABELS, b"")),
        "outside of",
    ),
    Case("ucr: infinity", "data", ucr(b"1\t0.5\tinf\n2\t1\t2\n"), "not finite"),
    Case("ucr: NaN", "data", ucr(b"1\t0.5\tnan\n2\t1\t2\n"), "missing values"),
    Case("ucr: text", "data", ucr(b"1\t0.5\t__import__('os')\n"), "could not convert"),
    Case(
        "ucr: label of a megabyte",
        "data",
        ucr(b"x" * 10**6 + b"\t1\t2\n2\t1\t2\n"),
        "label of 1,000,000 letters",
    ),
    Case(
        "ucr: labels beyond int64",
        "data",
        ucr(b"".join(b"%d\t1\t2\n" % (10**19 + k) for k in range(3))),
        "got the label 10000000000000000000",
    ),
    Case(
        "ucr: one line of 100 MB",
        "data",
        sparse(SERIES, 10**8, inside=True),
        "more than 16,777,216 bytes",
    ),
    Case("ucr: pipe", "data", pipe(SERIES, inside=True), "is a pipe"),
]
