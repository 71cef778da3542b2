"""Links and pipes in a folder that came from a stranger, under the names that the package uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import iadd_fast
from iadd_fast.artifacts.checkpoint import load_checkpoint, save_checkpoint
from iadd_fast.artifacts.files import check_writable, refuse_link
from iadd_fast.artifacts.folder_lock import exclusive
from iadd_fast.artifacts.unfinished import load_unfinished, remove_unfinished, save_unfinished
from iadd_fast.cli import app
from iadd_fast.options import printable


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the user's with a run's checkpoints."""
    folder = tmp_path / "my run"
    folder.mkdir()
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors"):
        (folder / name).write_text("of weeks")
    return folder


def untouched(victim: Path) -> bool:
    held = {path.name: path.read_text() for path in victim.iterdir()}
    names = ("checkpoint.safetensors", "checkpoint.previous.safetensors")
    return held == dict.fromkeys(names, "of weeks")


@pytest.mark.parametrize("name", [".probe", ".lock"])
def test_trying_to_write_opens_nothing_that_is_there(tmp_path: Path, name: str) -> None:
    """Evaluating a downloaded set tries its folder: breaks when a link there has another file
    overwritten, or a pipe there makes the program wait for ever."""
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years")
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / name).symlink_to(thesis)
    check_writable("out", folder, 1)
    if name == ".lock":
        with pytest.raises(OSError, match="out: .* cannot be written to"), exclusive(folder, "run"):
            raise AssertionError("entered")
    assert thesis.read_text() == "years"
    (folder / name).unlink()
    os.mkfifo(folder / name)
    check_writable("out", folder, 1)
    if name == ".lock":
        told = "no regular file"
        with pytest.raises(ValueError, match=told), exclusive(folder, "run"):
            raise AssertionError("entered")
    assert sorted(path.name for path in folder.iterdir()) == [name]


def test_a_networks_folder_that_is_a_link_is_neither_read_nor_removed(
    tmp_path: Path, victim: Path
) -> None:
    """Breaks when a foreign key at the end of a link has the user's own checkpoints removed."""
    link = tmp_path / "expert_0000.training"
    link.symlink_to(victim)
    told = "is a link to .*; takes a folder of its own there, or none"
    with pytest.raises(ValueError, match=told):
        load_unfinished(link, {"expert": 0})
    with pytest.raises(ValueError, match=told):
        save_unfinished(link, {"expert": 0}, {}, {})
    remove_unfinished(link)
    assert untouched(victim)


def test_a_link_is_no_folder_of_ones_own(tmp_path: Path, victim: Path) -> None:
    """Breaks when a link passes for a folder, also one that leads to nothing."""
    for target in (victim, tmp_path / "nothing"):
        link = tmp_path / "link"
        link.symlink_to(target)
        with pytest.raises(ValueError, match="is a link to"):
            refuse_link(link)
        link.unlink()
    assert refuse_link(tmp_path / "own") == tmp_path / "own"


COMMANDS: dict[str, list[str]] = {
    "experts": ["distill", "digits", "--student", "convnet:width=4,depth=1", "--iterations", "1"],
    "networks": ["evaluate", "SET", "digits", "--networks", "1", "--epochs", "1"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_job_does_not_work_through_a_link(tmp_path: Path, victim: Path, name: str) -> None:
    """Breaks when experts, or the networks of an evaluation, go where a link leads."""
    from typer.testing import CliRunner

    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / name).symlink_to(victim)
    arguments = list(COMMANDS[name])
    if "SET" in arguments:
        arguments[1] = str(made(tmp_path))
    done = CliRunner().invoke(app, [*arguments, "--out", str(folder), "--no-progress"])
    assert done.exit_code == 2, done.output
    assert f"{name}: is a link to" in done.output
    assert untouched(victim)


def made(folder: Path) -> Path:
    data = iadd_fast.load_data("digits")
    options: dict[str, Any] = {
        "iterations": 1, "steps": 1, "expert_epochs": 1, "max_start_epoch": 0,
        "validation_networks": 1, "validation_epochs": 1, "progress": False,
    }  # fmt: skip
    student = "convnet:width=4,depth=1"
    experts = iadd_fast.train_experts(data, student, count=1, epochs=1, progress=False)
    distilled = iadd_fast.distill(data, experts, student=student, **options)
    distilled.save(folder / "set.safetensors")
    return folder / "set.safetensors"


@pytest.mark.parametrize(
    "content", ["[" * 3000, '{"what": "\\u001b[2J\\u001b]0;pwned\\u0007", "since": "s\\r\\nfine"}']
)
def test_what_a_lock_says_is_shown_or_ignored(tmp_path: Path, content: str) -> None:
    """Breaks when nested brackets end in a traceback."""
    (tmp_path / ".lock").write_text(content)
    if content.startswith("["):
        with exclusive(tmp_path, "run"):
            pass
    else:
        with pytest.warns(UserWarning, match="goes on after"), exclusive(tmp_path, "run"):
            pass


def test_a_warning_gives_the_terminal_no_orders() -> None:
    """Breaks when what a stranger's file says moves the cursor or adds a line."""
    assert printable("a \x1b[2J\r\nall is well\x07") == "a \\x1b[2J all is well\\x07"


def test_experts_and_checkpoints_are_not_read_through_links_out_of_their_folder(
    tmp_path: Path,
) -> None:
    """Breaks when a received folder shows what is elsewhere on the machine."""
    data = iadd_fast.load_data("digits")
    options: dict[str, Any] = {"count": 1, "epochs": 1, "device": "cpu", "progress": False}
    iadd_fast.train_experts(data, "mlp:width=4", tmp_path / "mine", **options)
    folder = tmp_path / "received"
    folder.mkdir()
    (folder / "manifest.json").write_bytes((tmp_path / "mine" / "manifest.json").read_bytes())
    (folder / "expert_0000.safetensors").symlink_to(tmp_path / "mine" / "expert_0000.safetensors")
    with pytest.raises(ValueError, match="is a link to .*, outside of"):
        iadd_fast.ExpertStore.open(folder)
    save_checkpoint(tmp_path / "mine", {}, {})
    (folder / "checkpoint.safetensors").symlink_to(tmp_path / "mine" / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="no checkpoint in .* is a link to .*, outside of"):
        load_checkpoint(folder)
