"""Sets for other tools: folders of images, Parquet for Hugging Face datasets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from iadd_fast import cli
from iadd_fast.artifacts import DistilledSet
from iadd_fast.data import load_data
from iadd_fast.data.transform import Standardise
from iadd_fast.students import convnet, convnet1d, mlp

# What a file system, a shell or a page could take for something else.
NAMES = ("../../etc", "a/b\\c", "größer ☃")
TRANSFORM = Standardise(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3]))
SOFT = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])


def pixels_of(*shape: int) -> Tensor:
    """In data space, some a little below 0 and above 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1


def a_set(labels: Tensor | None = None, **changes: Any) -> DistilledSet:
    options: dict[str, Any] = {
        "images": TRANSFORM.apply(pixels_of(4, 3, 8, 8)),
        "labels": torch.tensor([2, 0, 1, 2]) if labels is None else labels,
        "lr": 0.1 + 1 / 3,
        "class_names": NAMES,
        "transform": TRANSFORM,
        "student_spec": convnet(channels=3, classes=3, image_size=8, width=4, depth=2).spec,
        "config": {"images_per_class": 1},
        "seed": 7,
        "data_name": "pets",
    }
    return DistilledSet(**{**options, **changes})


def series_set() -> DistilledSet:
    one = Standardise(torch.tensor([2.0]), torch.tensor([3.0]))
    return a_set(
        images=one.apply(pixels_of(4, 1, 16)),
        transform=one,
        student_spec=convnet1d(channels=1, classes=3, length=16, width=4).spec,
    )


def in_8_bits(pixels: Tensor, low: float = 0.0, high: float = 1.0) -> np.ndarray[Any, Any]:
    """What a PNG holds, computed another way: by NumPy, in float64."""
    scaled = (pixels.numpy().astype(np.float64) - low) / (high - low)
    return np.rint(np.clip(scaled, 0, 1) * 255)


def test_a_folder_is_read_by_our_own_loader(tmp_path: Path) -> None:
    """Breaks if the folders do not sort as the classes do, an image lies in another class, is
    written in transformed space or wraps around instead of being clipped."""
    one = a_set()
    one.to_folder(tmp_path / "new" / "set")
    data = load_data(
        tmp_path / "new" / "set", normalise="none", validation_fraction=0, test_fraction=0
    )
    assert data.train.labels.tolist() == [0, 1, 2, 2]
    order = torch.tensor([1, 2, 0, 3])  # by class, in the order of the set
    wanted = in_8_bits(one.pixels()[order])
    np.testing.assert_allclose(data.train.images * 255, wanted, atol=1.01)
    exact = (np.abs(data.train.images.numpy() * 255 - wanted) < 1e-3).mean()
    assert exact > 0.98, "rounded in another way than to the nearest"


def test_names_never_leave_the_folder(tmp_path: Path) -> None:
    """Breaks if a class called ../../etc writes outside, or its real name is lost."""
    target = tmp_path / "inner" / "set"
    a_set().to_folder(target)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert written == {
        "inner/set/0_etc/1.png",
        "inner/set/1_a_b_c/2.png",
        "inner/set/2_groer/0.png",
        "inner/set/2_groer/3.png",
        "inner/set/metadata.json",
    }
    described = json.loads((target / "metadata.json").read_text())
    assert tuple(described["class_names"]) == NAMES
    assert described["folders"] == ["0_etc", "1_a_b_c", "2_groer"]
    assert described["files"] == ["2_groer/0.png", "0_etc/1.png", "1_a_b_c/2.png", "2_groer/3.png"]


def test_eleven_classes_sort_by_number(tmp_path: Path) -> None:
    """Breaks if class 10 comes before class 2, or a name without one plain letter is none."""
    names = tuple("☃" * count for count in range(1, 12))
    labels = torch.arange(11)
    images = TRANSFORM.apply(pixels_of(11, 3, 8, 8))
    spec = convnet(channels=3, classes=11, image_size=8, width=4, depth=2).spec
    a_set(labels, images=images, class_names=names, student_spec=spec).to_folder(tmp_path / "set")
    folders = sorted(path.name for path in (tmp_path / "set").iterdir() if path.is_dir())
    assert folders == [f"{label:02d}" for label in range(11)]


def test_the_metadata_says_what_png_loses(tmp_path: Path) -> None:
    """Breaks if clipping is silent, or rate, transform or soft labels cannot be got back."""
    one = a_set(SOFT)
    one.to_folder(tmp_path / "set", pixel_range=(0.0, 0.5))
    described = json.loads((tmp_path / "set" / "metadata.json").read_text())
    pixels = one.pixels().numpy()
    outside = float(((pixels < 0) | (pixels > 0.5)).mean())
    assert described["share_of_values_clipped"] == pytest.approx(outside)
    assert described["pixel_range"] == [0.0, 0.5]
    assert described["learning_rate"] == one.lr
    assert described["seed"] == 7
    np.testing.assert_allclose(described["transform"]["std"], [0.2, 0.25, 0.3])
    np.testing.assert_allclose(described["soft_labels"], SOFT)
    assert [file[0] for file in described["files"]] == ["2", "0", "1", "2"], "not the most probable"
    with Image.open(tmp_path / "set" / described["files"][1]) as image:
        got = np.moveaxis(np.asarray(image), 2, 0)
    assert np.abs(got - in_8_bits(one.pixels()[1], 0, 0.5)).max() <= 1


def test_series_are_arrays(tmp_path: Path) -> None:
    """Breaks if series are drawn as pictures, rounded, or put out of order with their labels."""
    one = series_set()
    one.to_folder(tmp_path / "set")
    data = load_data(tmp_path / "set", normalise="none", validation_fraction=0, test_fraction=0)
    assert torch.equal(data.train.images, one.pixels())
    assert torch.equal(data.train.labels, one.labels)
    assert "pixel_range" not in json.loads((tmp_path / "set" / "metadata.json").read_text())


def test_nothing_is_overwritten_or_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a user's files are mixed with the export, or a failure leaves some of it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="mine: exists already; takes a new or empty folder"):
        a_set().to_folder(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"pixel_range: got \(1.0, 0.0\); takes"):
        a_set().to_folder(tmp_path / "other", (1.0, 0.0))
    monkeypatch.setattr("iadd_fast.artifacts.exports.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        a_set().to_folder(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def read_back(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=cache)


@pytest.mark.parametrize("soft", [False, True])
def test_hugging_face_reads_the_parquet_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soft: bool
) -> None:
    """Breaks if images come back as bytes, labels as numbers without names, soft labels not at
    all, or the exact samples are lost to 8 bits or flattened in another order."""
    one = a_set(SOFT if soft else None)
    one.to_parquet(tmp_path / "set.parquet")
    rows = read_back(tmp_path / "set.parquet", tmp_path / "cache", monkeypatch)
    assert rows.features["label"].names == list(NAMES)
    assert rows["label"][:] == [2, 0, 1, 2]
    for row, pixels in zip(rows, one.pixels(), strict=True):
        assert row["image"].mode == "RGB"
        got = np.moveaxis(np.asarray(row["image"]), 2, 0)
        assert np.abs(got - in_8_bits(pixels)).max() <= 1
    assert torch.equal(torch.tensor(rows["tensor"][:]), one.images)
    assert ("soft_label" in rows.features) is soft
    if soft:
        assert torch.equal(torch.tensor(rows["soft_label"][:]), SOFT)


@pytest.mark.parametrize(("kind", "column"), [("series", "series"), ("two channels", "pixels")])
def test_what_is_no_picture_becomes_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, column: str
) -> None:
    """Breaks if a series or an image of two channels is forced into PNG or left out."""
    one = series_set()
    if kind == "two channels":
        two = Standardise(torch.tensor([0.5, 0.25]), torch.tensor([2.0, 4.0]))
        spec = mlp(inputs=(2, 3, 5), classes=3).spec
        one = a_set(images=two.apply(pixels_of(4, 2, 3, 5)), transform=two, student_spec=spec)
    one.to_parquet(tmp_path / "set.parquet")
    rows = read_back(tmp_path / "set.parquet", tmp_path / "cache", monkeypatch)
    assert "image" not in rows.features
    assert torch.equal(torch.tensor(rows[column][:]), one.pixels())
    assert torch.equal(torch.tensor(rows["tensor"][:]), one.images)


def test_gray_images_stay_gray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if one channel is written as three, or refused."""
    one = Standardise(torch.tensor([0.5]), torch.tensor([2.0]))
    spec = mlp(inputs=(1, 3, 5), classes=3).spec
    gray = a_set(images=one.apply(pixels_of(4, 1, 3, 5)), transform=one, student_spec=spec)
    gray.to_parquet(tmp_path / "set.parquet")
    first = read_back(tmp_path / "set.parquet", tmp_path / "cache", monkeypatch)[0]["image"]
    assert (first.mode, first.size) == ("L", (5, 3))


def test_the_parquet_file_describes_the_set(tmp_path: Path) -> None:
    """Breaks if the learning rate, without which the set cannot be trained on, is not in it."""
    parquet = pytest.importorskip("pyarrow.parquet")
    one = a_set()
    one.to_parquet(tmp_path / "set.parquet")
    metadata = parquet.read_schema(tmp_path / "set.parquet").metadata
    described = json.loads(metadata[b"iadd_fast"])
    assert described["learning_rate"] == one.lr
    assert described["student"] == one.student_spec
    assert described["config"] == {"images_per_class": 1}
    pixels = one.pixels()
    outside = float(((pixels < 0) | (pixels > 1)).double().mean())
    assert described["share_of_values_clipped"] == pytest.approx(outside)


def test_without_pyarrow_the_command_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a plain installation ends in a traceback without what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install 'iadd_fast\[parquet\]'"):
        a_set().to_parquet(tmp_path / "set.parquet")
    with pytest.raises(ValueError, match="pixel_range"):
        a_set().to_folder(tmp_path / "set", (0.0, float("nan")))


def test_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    """Breaks if Hugging Face refuses the file only when it is read."""
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="class_names: got .*ClassLabel takes each name once"):
        a_set(class_names=("a", "b", "a")).to_parquet(tmp_path / "set.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("to", "out", "made"),
    [("mtt", "set", "images_best.pt"), ("folder", "set", "0_etc/1.png"), ("parquet", "s.pq", "")],
)
def test_on_the_command_line(tmp_path: Path, to: str, out: str, made: str) -> None:
    """Breaks if --to picks another format, or an unknown one writes something."""
    a_set().save(tmp_path / "set.safetensors")
    command = ["export", str(tmp_path / "set.safetensors"), "--out", str(tmp_path / out)]
    result = CliRunner().invoke(cli.app, [*command, "--to", to])
    assert result.exit_code == 0, result.output
    assert (tmp_path / out / made).is_file()
    result = CliRunner().invoke(cli.app, [*command, "--to", "onnx"])
    assert result.exit_code == 2
    assert "to: got 'onnx'; takes one of mtt, folder, parquet" in result.stderr
