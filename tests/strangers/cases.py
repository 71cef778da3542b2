"""What a hostile file is to the tests, and the common ways to make one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.strangers.building import holes

Maker = Callable[[Path], Path]
#: What a file beside the hostile ones holds, before and after.
PRECIOUS = "not to be touched"


@dataclass(frozen=True)
class Case:
    """A hostile file.

    Attributes:
        name: what it does. reader: key of ``READERS``.
        make: writes it into an empty folder and returns what the reader is given.
        text: a part of the message; "" for a file that is read all the same.
        error: one of the errors' builtin types.
    """

    name: str
    reader: str
    make: Maker
    text: str
    error: str = "ValueError"

    def build(self, folder: Path) -> Path:
        """Make the file in a folder of its own, beside which the canary may appear."""
        own = folder / "".join(c if c.isalnum() else "-" for c in self.name)
        own.mkdir(parents=True)
        return self.make(own)


def file(name: str, content: bytes | Callable[[Path], bytes], inside: bool = False) -> Maker:
    """Writes one file; ``content`` may be made of the path of the canary.

    Args:
        inside: the reader is given the folder.
    """

    def make(folder: Path) -> Path:
        made = content if isinstance(content, bytes) else content(folder.parent / "canary")
        (folder / name).write_bytes(made)
        return folder if inside else folder / name

    return make


def pipe(name: str, inside: bool = False) -> Maker:
    """A pipe that nobody writes to."""

    def make(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder if inside else folder / name

    return make


def link(name: str, target: str, inside: bool = False) -> Maker:
    """A symbolic link."""

    def make(folder: Path) -> Path:
        (folder / name).symlink_to(target)
        return folder if inside else folder / name

    return make


def sparse(name: str, size: int, start: bytes = b"", inside: bool = False) -> Maker:
    """A file that takes next to nothing on the disk."""

    def make(folder: Path) -> Path:
        path = holes(folder / name, size, start)
        return folder if inside else path

    return make


def link_to_precious(name: str) -> Maker:
    """A folder in which what is written is a link to a file beside it."""

    def make(folder: Path) -> Path:
        (folder / "precious").write_text(PRECIOUS)
        (folder / "run").mkdir()
        (folder / "run" / name).symlink_to(folder / "precious")
        return folder / "run"

    return make


def beside(*makers: Maker) -> Maker:
    """Several files in one folder, which the reader is given."""

    def make(folder: Path) -> Path:
        for maker in makers:
            maker(folder)
        return folder

    return make
