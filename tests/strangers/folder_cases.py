"""Hostile folders of pictures."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.strangers import building as b
from tests.strangers.cases import Case, Maker, link, pipe


def cats(maker: Callable[[Path], Any]) -> Maker:
    """Class folders; ``maker`` puts something into that of the cats."""

    def make(folder: Path) -> Path:
        root = b.class_folder(folder / "data")
        maker(root / "cats")
        return root

    return make


def picture(name: str, content: bytes) -> Maker:
    """Class folders with one file more."""
    return cats(lambda folder: (folder / name).write_bytes(content))


def named(name: bytes) -> Maker:
    """Class folders of which one has this name."""

    def make(folder: Path) -> Path:
        root = b.class_folder(folder / "data")
        os.rename(root / "cats", os.path.join(os.fsencode(root), name))
        return root

    return make


def outside(folder: Path) -> None:
    """A link from the cats to a picture beside the data."""
    secret = folder.parents[1] / "secret.png"
    secret.write_bytes(b.picture())
    (folder / "9.png").symlink_to(secret)


def claiming(width: int, height: int) -> bytes:
    """A picture whose header says it is that large."""
    content = bytearray(b.picture())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def text_bomb() -> bytes:
    """A picture with a comment that unpacks to 100 MB."""
    content = b.picture()
    comment = b"comment\0\0" + zlib.compress(bytes(10**8), 9)
    return content[:33] + chunk(b"zTXt", comment) + content[33:]


SVG = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    b"(%pipe%mkdir canary) (w) file\nshowpage\n"
)

CASES = [
    Case(
        "folder: picture of 10**9 pixels",
        "data",
        picture("9.png", claiming(32768, 32768)),
        "exceeds limit",
    ),
    Case(
        "folder: picture of 10**8 pixels",
        "data",
        picture("9.png", claiming(10000, 10000)),
        "has 10000x10000 pixels",
    ),
    Case(
        "folder: picture of 2**60 pixels", "data", picture("9.png", claiming(2**30, 2**30)), "9.png"
    ),
    Case("folder: half a picture", "data", picture("9.png", b.picture()[:-30]), "9.png: "),
    Case(
        "folder: EPS as PNG", "data", picture("9.png", EPS), "not an image, or one of another kind"
    ),
    Case("folder: SVG as PNG", "data", picture("9.png", SVG), "not an image"),
    Case("folder: empty picture", "data", picture("9.png", b""), "not an image"),
    Case("folder: comment of 100 MB in a PNG", "data", picture("9.png", text_bomb()), "9.png: "),
    Case("folder: animated", "data", picture("9.gif", b.picture((8, 8), "GIF")), ""),
    Case("folder: CMYK", "data", picture("9.jpg", b.picture((8, 8, 4), "TIFF")), ""),
    Case("folder: pipe", "data", cats(pipe("9.png")), "9.png: is a pipe"),
    Case("folder: /dev/zero", "data", cats(link("9.png", "/dev/zero")), "is a device"),
    Case(
        "folder: link to nothing",
        "data",
        cats(link("9.png", "gone")),
        "a link to nothing",
        "FileNotFoundError",
    ),
    Case("folder: link to itself", "data", cats(link("9.png", "9.png")), "symbolic links"),
    Case("folder: link out of the folder", "data", cats(outside), "outside of"),
    Case("folder: class of another folder", "data", cats(link("../etc", "/etc")), "outside of"),
    Case("folder: class inside itself", "data", cats(link("again", "..")), ""),
    Case("folder: class named as HTML", "data", named(b"<script>alert(1)<"), ""),
    Case("folder: class with a line break", "data", named(b"a\n\x1b[31mb"), ""),
    Case("folder: class of no UTF-8", "data", named(b"caf\xe9"), "is no UTF-8 text"),
    Case("folder: hidden class", "data", named(b".cats"), "one class only"),
]
