"""One run at a time in a folder, whoever starts the second one and however the first one ended."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from iadd_fast.artifacts.files import make_folders, remove_empty
from iadd_fast.reading import parse_json

LOCK = ".lock"


class FolderInUse(ValueError):
    """Another run holds the folder; the message says which."""


@contextmanager
def exclusive(folder: Path, what: str, name: str = LOCK) -> Iterator[None]:
    """Make ``folder`` and keep other runs out of it until the block or the process ends.

    The operating system holds the lock (``flock`` on the file ``name`` there) and lets go of it
    when the process dies, however that happens: the next run takes it over, saying whose it was.
    The file holds who has it. Where a file system or Windows has no such lock, that entry alone
    decides: one of a dead process of this machine is taken over, one of another machine has to be
    removed by hand. A folder that was made here and is left by an error with nothing in it goes.

    Args:
        folder: where the run writes. what: the run in a word or two, for others to read.
        name: of the lock's file, where several things in the folder have one each.

    Raises:
        FolderInUse: another run holds it; the message has what it is, process, machine and since
            when.
        NotADirectoryError: ``folder`` or a parent of it is a file.
        OSError: it cannot be written to.

    Warns:
        UserWarning: the holder before has ended without letting go.
    """
    with _naming(folder):
        made = make_folders(folder)
    path = folder / name
    try:
        with ExitStack() as stack:
            while True:
                with _naming(folder):
                    file = stack.enter_context(_opened(path))
                locked = _lock(file)
                # Its holder may have removed it, with the folder, between the two.
                if locked is not True or _is_at(path, file):
                    break
            holder = _holder(file)
            if locked is False or (locked is None and holder is not None and not _is_dead(holder)):
                raise FolderInUse(_refusal(folder, path, holder, certain=locked is False))
            if holder is not None:
                warnings.warn(
                    f"{folder}: goes on after {_told(holder)}, which ended without letting go",
                    stacklevel=3,
                )
            mine = {
                "what": what,
                "process": os.getpid(),
                "machine": socket.gethostname(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            }
            with _naming(folder):
                _write(file, mine)
            try:
                yield
            finally:
                _write(file, None)
    except BaseException:
        if made and [entry.name for entry in folder.iterdir()] == [name]:
            path.unlink(missing_ok=True)
            remove_empty(made)
        raise


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """The system's own errors with the folder's name."""
    try:
        yield
    except NotADirectoryError:
        raise
    except OSError as error:
        raise type(error)(
            f"out: {folder} cannot be written to ({error.strerror or error})"
        ) from None


def _opened(path: Path) -> IO[str]:
    """The file of a lock, made where it is missing; not truncated, for it may be another's."""
    # Not through a link, at whose end another file would be overwritten.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path}: is no regular file; remove it")
    return os.fdopen(descriptor, "r+")


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _lock(file: IO[str]) -> bool | None:
    """Whether the lock is ours now; None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _holder(file: IO[str]) -> dict[str, Any] | None:
    file.seek(0)
    try:
        found = parse_json(file.read(4096))
    except ValueError:  # empty, or a process died while it wrote it
        return None
    return found if isinstance(found, dict) else None


def _write(file: IO[str], holder: dict[str, Any] | None) -> None:
    file.seek(0)
    file.truncate()
    if holder is not None:
        file.write(json.dumps(holder))
    file.flush()


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder is surely gone: a process of this machine that is not there."""
    number = holder.get("process")
    if holder.get("machine") != socket.gethostname() or not isinstance(number, int):
        return False
    if os.name == "nt":  # os.kill would end it
        return False
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass
    return False


def _told(holder: dict[str, Any]) -> str:
    named = {key: str(holder.get(key, "unknown"))[:80] for key in ("what", "process", "machine")}
    since = str(holder.get("since", "unknown"))[:80]
    return f"{named['what']} (process {named['process']} on {named['machine']}, since {since})"


def _refusal(folder: Path, path: Path, holder: dict[str, Any] | None, certain: bool) -> str:
    who = "another run" if holder is None else _told(holder)
    text = f"out: {folder} is in use by {who}; wait for it, stop it, or give another folder"
    return text if certain else f"{text} (if that run is dead, remove {path})"
