"""Files appear whole or not at all, and say clearly what is wrong with them."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from iadd_fast.artifacts.files import (
    check_schema,
    load_tensors,
    read_json,
    save_tensors,
    write_atomically,
    write_json,
)


def half_then_fail(path: Path) -> None:
    path.write_text("half")
    raise KeyboardInterrupt


def write_new(path: Path) -> None:
    path.write_text("new")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    """Breaks if cleaning up forgets the temporary file (also on Ctrl-C) or the folders made."""
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a" / "b" / "file.txt", half_then_fail)
    assert names(tmp_path) == []


def test_an_existing_file_survives_a_failing_writer(tmp_path: Path) -> None:
    """Breaks if the old file is opened, truncated or removed before the new one is complete."""
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, half_then_fail)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    """Breaks if new content keeps the tail of the old, or the temporary name stays."""
    path = tmp_path / "file.txt"
    path.write_text("old and longer")
    write_atomically(path, write_new)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file.txt"]


def test_a_failing_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if only the writer, and not the sync and the rename after it, is covered."""

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(f"no {target}")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        write_json(tmp_path / "value.json", 1)
    assert names(tmp_path) == []


def test_file_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a power cut can leave an empty file under the final name: the order matters."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_sync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("folder" if folder else "file")
        fsync(descriptor)

    def spy_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    write_json(tmp_path / "value.json", {"a": 1})
    assert events == ["file", "rename", "folder"]
    events.clear()
    write_json(tmp_path / "new" / "value.json", {"a": 1})
    assert events == ["file", "rename", "folder", "folder"]


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    """Breaks if a writer that used another name passes silently (np.save adds a suffix)."""
    with pytest.raises(RuntimeError, match="without writing"):
        write_atomically(tmp_path / "file.txt", lambda temporary: None)
    assert names(tmp_path) == []


def test_the_temporary_name_keeps_the_suffix(tmp_path: Path) -> None:
    """Breaks for writers that choose the format by, or append, the suffix (matplotlib, numpy)."""
    seen: list[str] = []

    def write(path: Path) -> None:
        seen.append(path.suffix)
        path.write_text("x")

    write_atomically(tmp_path / "picture.png", write)
    assert seen == [".png"]


def test_a_folder_or_a_file_in_the_way(tmp_path: Path) -> None:
    """Breaks if the error comes from the rename, after all the work, or names another path."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(IsADirectoryError, match="folder"):
        write_json(tmp_path / "folder", 1)
    with pytest.raises(NotADirectoryError, match="file"):
        write_json(tmp_path / "file" / "value.json", 1)


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    """Breaks if non-ASCII text is damaged, or NaN (no JSON outside Python) passes."""
    path = tmp_path / "value.json"
    value = {"name": "größe", "numbers": [1, 0.1, None, True]}
    write_json(path, value)
    assert read_json(path) == value
    for bad in ({"x": math.nan}, {"x": Path()}):
        with pytest.raises(ValueError, match="value.json.*JSON"):
            write_json(path, bad)
    assert read_json(path) == value
    path.write_text("{broken")
    with pytest.raises(ValueError, match="value.json.*not a JSON file"):
        read_json(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere.json"):
        read_json(tmp_path / "nowhere.json")


def test_tensors_round_trip_exactly(tmp_path: Path) -> None:
    """Breaks if a dtype or bit is changed, or if strided and overlapping tensors are mixed up."""
    base = torch.randn(4, 6)
    tensors = {
        "transposed": base.T,
        "part": base[1:3, ::2],
        "same": base,
        "expanded": torch.tensor([1.5]).expand(3),
        "double": torch.tensor([math.pi, -0.0, math.nan], dtype=torch.float64),
        "whole": torch.tensor([2**62 + 1]),
        "half": torch.tensor([0.1], dtype=torch.bfloat16),
        "scalar": torch.tensor(3.0, requires_grad=True),
    }
    path = tmp_path / "tensors.safetensors"
    save_tensors(path, tensors, {"kind": "x", "nested": {"a": [1, 0.1]}, "nan": math.nan})
    loaded, metadata = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
    assert math.isnan(metadata.pop("nan"))
    assert metadata == {"kind": "x", "nested": {"a": [1, 0.1]}}


def test_files_have_the_users_own_mode(tmp_path: Path) -> None:
    """A set that only its owner can read is of no use to colleagues (safetensors' own default)."""
    previous = os.umask(0o027)
    try:
        save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)}, {})
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640


def test_loaded_tensors_do_not_depend_on_the_file(tmp_path: Path) -> None:
    """Breaks if tensors stay mapped to the file: truncating it would then kill the process."""
    path = tmp_path / "tensors.safetensors"
    save_tensors(path, {"x": torch.arange(5.0)}, {})
    loaded, _ = load_tensors(path)
    with path.open("rb+") as file:
        file.truncate(0)
    assert loaded["x"].tolist() == [0, 1, 2, 3, 4]


def test_foreign_and_damaged_files_are_named(tmp_path: Path) -> None:
    """Breaks if a user sees safetensors' own error without the path, or a KeyError."""
    path = tmp_path / "file.safetensors"
    with pytest.raises(FileNotFoundError, match=r"file.safetensors"):
        load_tensors(path)
    for content in (b"", b"PK\x03\x04 a zip file, for instance"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="file.safetensors: is not a safetensors file"):
            load_tensors(path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="not one of iadd_fast's"):
        load_tensors(path)
    save_tensors(path, {"x": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="damaged"):
        load_tensors(path)


def test_schema_versions() -> None:
    """Breaks if a newer file is read as this version's, or another kind is let through."""
    check_schema("a", {"kind": "k", "schema": 1}, "k", 1)
    check_schema("a", {"kind": "k", "schema": 1}, "k", 2)
    with pytest.raises(ValueError, match="a: .*newer iadd_fast.*upgrade"):
        check_schema("a", {"kind": "k", "schema": 2}, "k", 1)
    with pytest.raises(ValueError, match="a: holds 'other'; expected 'k'"):
        check_schema("a", {"kind": "other", "schema": 1}, "k", 1)
    for version in (None, "1", 0, True):
        with pytest.raises(ValueError, match="schema version"):
            check_schema("a", json.loads(json.dumps({"kind": "k", "schema": version})), "k", 1)
