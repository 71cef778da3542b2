"""MTT's buffers as a folder of experts, one file in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from iadd_fast import load_data, students
from iadd_fast.artifacts import ExpertStore, convert_mtt_buffers, load_mtt_buffers, mtt
from iadd_fast.cli import app
from tests.memory_limit import MemoryLimit

STUDENT = "convnet:width=4,depth=2"


def student() -> students.Student:
    return students.parse_student(STUDENT, (1, 8, 8), 10)


def write(folder: Path, files: int = 3, each: int = 2) -> None:
    shapes = [entry.shape for entry in student().parameters]
    draw = torch.Generator().manual_seed(0)
    for number in range(files):
        buffer = [
            [[torch.randn(shape, generator=draw) for shape in shapes] for _ in range(3)]
            for _ in range(each)
        ]
        folder.mkdir(exist_ok=True)
        torch.save(buffer, folder / f"replay_buffer_{number}.pt")


def test_every_trajectory_comes_over(tmp_path: Path) -> None:
    """Breaks when a file is left out, experts change places, or the data is not noted, which a
    distillation then refuses."""
    write(tmp_path / "mtt")
    data = load_data("digits")
    wanted = load_mtt_buffers(tmp_path / "mtt", student())
    store = convert_mtt_buffers(tmp_path / "mtt", tmp_path / "out", student(), data)
    assert (len(store), store.count, store.epochs) == (6, 6, 2)
    assert store.data_fingerprint == data.fingerprint
    assert store.settings["transform"] == "standard"
    for index in range(6):
        for epoch in range(3):
            assert torch.equal(store.snapshot(index, epoch), wanted.snapshot(index, epoch))


def test_a_stopped_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when what is there is written again, or refused."""
    write(tmp_path / "mtt")
    data = load_data("digits")
    add = ExpertStore.add
    added: list[int] = []

    def stops(self: ExpertStore, index: int, *given: Any) -> None:
        if len(added) == 3:
            raise KeyboardInterrupt
        added.append(index)
        add(self, index, *given)

    monkeypatch.setattr(ExpertStore, "add", stops)
    with pytest.raises(KeyboardInterrupt):
        convert_mtt_buffers(tmp_path / "mtt", tmp_path / "out", student(), data)
    monkeypatch.setattr(ExpertStore, "add", add)
    store = convert_mtt_buffers(tmp_path / "mtt", tmp_path / "out", student(), data)
    assert added == [0, 1, 2] and store.missing() == []


def test_one_file_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """Breaks when the trajectories of several files are held."""
    write(tmp_path / "few", files=1)
    write(tmp_path / "many", files=5)
    peaks = []
    for name in ("few", "many"):
        with MemoryLimit() as memory:
            for trajectory in mtt.trajectories_of(tmp_path / name, student()):
                del trajectory
        peaks.append(memory.peak)
    assert peaks[1] <= 1.1 * peaks[0], peaks


def test_large_buffers_say_how_to_convert_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when hundreds of gigabytes are read without a word, or the command is another."""
    write(tmp_path / "mtt")
    monkeypatch.setattr(mtt, "LARGE", 1000)
    with pytest.warns(UserWarning, match="iadd-fast import-mtt .*mtt DATA --out FOLDER"):
        load_mtt_buffers(tmp_path / "mtt")


def test_the_command_takes_them(tmp_path: Path) -> None:
    """Breaks when import-mtt takes buffers for a set, or swallows an option of sets."""
    write(tmp_path / "mtt")
    command = ["import-mtt", str(tmp_path / "mtt"), "digits", "--out", str(tmp_path / "out")]
    command += ["--student", STUDENT]
    refused = CliRunner().invoke(app, [*command, "--lr", "0.1"])
    assert refused.exit_code != 0 and "lr: got 0.1" in refused.output
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "6 of 6 experts" in done.output
    assert len(ExpertStore.open(tmp_path / "out")) == 6


def test_arguments_of_other_types_are_named(tmp_path: Path) -> None:
    """Breaks if they end in an AttributeError, the second one after all files have been read."""
    write(tmp_path / "mtt")
    name: Any = STUDENT
    nothing: Any = None
    with pytest.raises(TypeError, match="student: got 'convnet:.*'; takes a Student"):
        convert_mtt_buffers(tmp_path / "mtt", tmp_path / "out", name, load_data("digits"))
    with pytest.raises(TypeError, match="data: got None; takes data from load_data"):
        convert_mtt_buffers(tmp_path / "mtt", tmp_path / "out", student(), nothing)
    assert not (tmp_path / "out").exists()
