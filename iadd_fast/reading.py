"""Files that a stranger may have made: opened and read so that they can do no harm.

A name may belong to a pipe that never ends, a link that leads elsewhere or a file of terabytes that
takes no room on the disk; a header may announce what is not there. Every reader of the package goes
through these few checks before it opens or allocates anything.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from iadd_fast import arguments

#: Bytes of a file of text (JSON, TOML, CSV) that is read as a whole.
LARGEST_TEXT = 2**26
#: Lists and objects inside one another in a JSON value.
DEEPEST = 64
#: Bytes up to which a file may consist of holes.
_SOLID = 2**30
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def regular_file(path: str | Path, within: Path | None = None) -> Path:
    """``path`` as a ``Path``, where a regular file is there; nothing is opened.

    Args:
        within: a folder that a link at ``path`` may not lead out of.

    Raises:
        FileNotFoundError: there is none, or a link to nothing. IsADirectoryError: it is a folder.
        OSError: it cannot be reached (no permission).
        ValueError: it is a link to itself; a pipe, a device or a socket, which may never end; a
            link that leaves ``within``; or a file of more than a gigabyte with next to nothing on
            the disk.
    """
    path = arguments.path("path", path)
    try:
        found = path.stat()
    except FileNotFoundError:
        what = "is a link to nothing" if path.is_symlink() else "no such file"
        raise FileNotFoundError(f"{path}: {what}") from None
    except NotADirectoryError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise type(error)(f"{path}: cannot be read ({error.strerror or error})") from None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{path}: is a folder; takes a file")
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "of another kind")
        raise ValueError(f"{path}: is {kind}, which may never end; takes a regular file")
    taken = 512 * getattr(found, "st_blocks", 0)
    if found.st_size > _SOLID and 0 < taken < found.st_size / 1000:
        raise ValueError(
            f"{path}: has {found.st_size:,} bytes and takes {taken:,} of the disk: it consists of "
            "holes; takes a file that was written"
        )
    if within is not None:
        check_inside(path, within)
    return path


def check_inside(path: Path, folder: Path) -> None:
    """Raise ``ValueError`` where ``path``, found in ``folder``, is a link that leads out of it."""
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{path}: is a link to {path.resolve()}, outside of {folder}; takes files of the "
            "folder itself (cp -rL copies a folder with what its links lead to)"
        )


def check_memory(where: str | Path, wanted: int) -> None:
    """Raise ``ValueError`` where ``wanted`` bytes are more than this machine's memory.

    Called before what a stranger's file announces is allocated.
    """
    held = arguments.memory_of_machine()
    if wanted > held:
        raise ValueError(
            f"{where}: announces values of {wanted / 2**30:,.1f} GiB; this machine has "
            f"{held / 2**30:,.1f} GiB of memory"
        )


def read_text(path: str | Path, largest: int = LARGEST_TEXT) -> str:
    """The UTF-8 text of the regular file ``path``, newlines as they are.

    Raises:
        ValueError: it has more than ``largest`` bytes, or is no such text. Else as
            :func:`regular_file`.
    """
    path = regular_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        content = file.read(largest + 1) if size <= largest else b""
    if max(size, len(content)) > largest:
        raise ValueError(f"{path}: has {size:,} bytes; takes at most {largest:,}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text ({error.reason})") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text whose nesting and texts everything can deal with.

    Raises:
        ValueError: it is no JSON, nested deeper than ``DEEPEST``, or holds text that UTF-8 has no
            form for (half a surrogate pair).
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from None
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for entry in level:
            if isinstance(entry, dict):
                inner += [*entry, *entry.values()]
            elif isinstance(entry, list):
                inner += entry
            elif isinstance(entry, str):
                check_text(entry)
        level = inner
    if level:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    return value


def check_text(text: str) -> None:
    """Raise ``ValueError`` where UTF-8 has no form for ``text``."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"the text {text[:80]!a} is no valid Unicode") from None
