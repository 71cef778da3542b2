"""One run at a time in a folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import warnings
from pathlib import Path

import pytest

import iadd_fast
from iadd_fast.artifacts import folder_lock
from iadd_fast.artifacts.folder_lock import LOCK, FolderInUse, exclusive


def held_by_child(folder: Path) -> int:
    """A process that holds ``folder`` until it is killed."""
    number = os.fork()
    if number == 0:
        with exclusive(folder, "distill"):
            (folder / "ready").touch()
            time.sleep(60)
        os._exit(0)
    while not (folder / "ready").exists():
        time.sleep(0.01)
    return number


def kill(number: int) -> None:
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)


def test_the_second_is_told_who_the_first_is_and_a_dead_one_is_followed(tmp_path: Path) -> None:
    """Breaks when two runs write one folder, when the message names nobody, or when a killed run
    keeps its folder for ever."""
    folder = tmp_path / "out"
    number = held_by_child(folder)
    try:
        told = rf"out: .* in use by distill \(process {number} on {socket.gethostname()}, since 20"
        with pytest.raises(FolderInUse, match=told), exclusive(folder, "distill"):
            pass
    finally:
        kill(number)
    told = rf"after distill \(process {number} .* without letting"
    with pytest.warns(UserWarning, match=told), exclusive(folder, "distill"):
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # let go of properly: nothing to say
        with exclusive(folder, "distill"):
            pass


def test_distill_and_experts_are_refused_and_leave_the_other_run_alone(tmp_path: Path) -> None:
    """Breaks when a public call does not take the lock, or writes before it has it."""
    data = iadd_fast.load_data("digits")
    number = held_by_child(tmp_path)
    before = sorted(tmp_path.iterdir())
    try:
        with pytest.raises(FolderInUse, match="in use by distill"):
            iadd_fast.distill(data, out=tmp_path, progress=False)
        with pytest.raises(FolderInUse, match="in use by distill"):
            iadd_fast.train_experts(data, out=tmp_path, progress=False)
        with pytest.raises(FolderInUse, match="in use by distill"):
            iadd_fast.tune(data, tmp_path, trials=1, progress=False)
        assert sorted(tmp_path.iterdir()) == before
    finally:
        kill(number)


@pytest.mark.parametrize("dead", [True, False])
def test_without_locks_of_the_system_the_entry_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    """Breaks when a file system without locks lets two runs in, or lets nobody in any more."""
    monkeypatch.setattr(folder_lock, "_lock", lambda file: None)
    number = os.fork()
    if number == 0:
        os._exit(0)
    os.waitpid(number, 0)
    process = number if dead else os.getpid()
    holder = {"what": "distill", "process": process, "machine": socket.gethostname()}
    (tmp_path / LOCK).write_text(json.dumps(holder))
    if dead:
        with pytest.warns(UserWarning, match="goes on after"), exclusive(tmp_path, "distill"):
            pass
    else:
        told = "if that run is dead, remove"
        with pytest.raises(FolderInUse, match=told), exclusive(tmp_path, "distill"):
            pass
    (tmp_path / LOCK).write_text(json.dumps({**holder, "machine": "elsewhere", "process": number}))
    with pytest.raises(FolderInUse, match="on elsewhere"), exclusive(tmp_path, "distill"):
        pass


def test_a_folder_made_for_nothing_goes(tmp_path: Path) -> None:
    """Breaks when an error right at the start leaves folders behind, or takes someone's files."""
    with pytest.raises(RuntimeError), exclusive(tmp_path / "a" / "b", "distill"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), exclusive(tmp_path / "c", "distill"):
        (tmp_path / "c" / "kept").touch()
        raise RuntimeError
    assert (tmp_path / "c" / "kept").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": "x"}', "\0" * 10])
def test_any_content_of_the_file_will_do(tmp_path: Path, content: str) -> None:
    """Breaks when a process killed while it wrote its entry keeps everybody out."""
    (tmp_path / LOCK).write_text(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with exclusive(tmp_path, "distill"):
            pass
