"""Hostile CIFAR batches: pickles that run code, claim terabytes or keep a reader busy for years."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from tests.strangers import building as b
from tests.strangers.building import TERA
from tests.strangers.cases import Case, Maker, file, link, pipe, sparse

BATCH = "data_batch_1"
TUPLES = b"q\x00h\x00\x86" * 60
MINUS_ONE = b"J\xff\xff\xff\xff"


def cifar(content: bytes | Callable[[Path], bytes]) -> Maker:
    return file(BATCH, content, inside=True)


def text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def array(
    shape: bytes, kind: bytes = b"u1", order: bytes = b"|", labels: bytes = b"](K\0K\1e"
) -> bytes:
    """A batch whose array has this shape and 6,144 bytes, written as Python 2 did."""
    dtype = b"cnumpy\ndtype\n(" + text(kind) + b"K\0K\1tR"
    dtype += b"(K\3" + text(order) + b"NNN" + 2 * MINUS_ONE + b"K\0tb"
    data = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\1btR"
    data += b"(K\1" + shape + dtype + b"\x89T" + struct.pack("<I", 6144) + bytes(6144) + b"tb"
    return b"\x80\x02}(" + text(b"data") + data + text(b"labels") + labels + b"u."


ROWS = b"K\2M\0\x0c\x86"  # two rows of 3,072
ONE_HASH = b"".join(b"p%d\n" % (k * (2**61 - 1)) for k in range(1000))
LETTERS = b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\0"
ENCODED = b"c_codecs\nencode\n(h\0X\6\0\0\0latin1tR"

CASES = [
    Case("cifar: runs code", "data", cifar(b.running), "it asks for posix.mkdir"),
    Case(
        "cifar: runs code, protocol 0",
        "data",
        cifar(lambda canary: b.running(canary, 0)),
        "it asks for posix.mkdir",
    ),
    Case(
        "cifar: runs code, protocol 5",
        "data",
        cifar(lambda canary: b.running(canary, 5)),
        "it asks for posix.mkdir",
    ),
    Case(
        "cifar: a name of 10 MB",
        "data",
        cifar(b"c" + b"A" * 10**7 + b"\nb\n."),
        "it asks for AAAA",
    ),
    Case("cifar: INST", "data", cifar(b"(S'x'\niposix\nsystem\n."), "instruction INST"),
    Case("cifar: OBJ", "data", cifar(b"(cnumpy\nndarray\no."), "instruction OBJ"),
    Case("cifar: NEWOBJ", "data", cifar(b"cnumpy\nndarray\n)\x81."), "instruction NEWOBJ"),
    Case("cifar: extension registry", "data", cifar(b"\x82\x01."), "instruction EXT1"),
    Case("cifar: persistent id", "data", cifar(b"Pid\n."), "instruction PERSID"),
    Case(
        "cifar: state of a class", "data", cifar(b"cnumpy\nndarray\n}b."), "it holds a Named where"
    ),
    Case(
        "cifar: text of 2**62 bytes",
        "data",
        cifar(b"\x8d" + struct.pack("<Q", 2**62)),
        "cannot be read",
    ),
    Case(
        "cifar: bytes of 2**62", "data", cifar(b"\x8e" + struct.pack("<Q", 2**62)), "cannot be read"
    ),
    Case(
        "cifar: number of 2**31 bytes",
        "data",
        cifar(b"\x8b" + struct.pack("<i", 2**31 - 1)),
        "cannot be read",
    ),
    Case(
        "cifar: frame of 2**62 bytes",
        "data",
        cifar(b"\x95" + struct.pack("<Q", 2**62)),
        "cannot be read",
    ),
    Case(
        "cifar: place 2**31 of the memo",
        "data",
        cifar(b"Nr\xff\xff\xff\x7f."),
        "at place 2,147,483,647",
    ),
    Case("cifar: places of one hash", "data", cifar(b"N" + ONE_HASH + b"."), "at place"),
    Case(
        "cifar: key of 2**60 tuples",
        "data",
        cifar(b"})" + TUPLES + b"Ns."),
        "holds a tuple as a key",
    ),
    Case(
        "cifar: labels of 2**60 lists",
        "data",
        cifar(array(ROWS, labels=b"](N" + TUPLES + b"K\1e")),
        "no whole numbers",
    ),
    Case(
        "cifar: 10**5 lists in one another",
        "data",
        cifar(b"]" * 10**5 + b"a" * (10**5 - 1) + b"."),
        "found a list",
    ),
    Case(
        "cifar: bytes made again and again",
        "data",
        cifar(LETTERS + ENCODED * 1000 + b"."),
        "makes more bytes",
    ),
    Case(
        "cifar: negative shape",
        "data",
        cifar(array(MINUS_ONE + b"M\0\x0c\x86")),
        "a type, shape or content",
    ),
    Case(
        "cifar: shape of 10**24",
        "data",
        cifar(array(b.number(TERA) * 2 + b"\x86")),
        "a type, shape or content",
    ),
    Case(
        "cifar: shape of other content",
        "data",
        cifar(array(b"K\3M\0\x0c\x86")),
        "other content than its shape",
    ),
    Case("cifar: array of objects", "data", cifar(array(ROWS, b"O8")), "of type 'O8'"),
    Case("cifar: byte order of nonsense", "data", cifar(array(ROWS, order=b"O")), "byte order"),
    Case("cifar: pipe", "data", pipe(BATCH, inside=True), "is a pipe"),
    Case("cifar: /dev/zero", "data", link(BATCH, "/dev/zero", inside=True), "is a device"),
    Case("cifar: terabytes of holes", "data", sparse(BATCH, TERA, b"N", inside=True), "of holes"),
]
