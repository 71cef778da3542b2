"""Sets in the layouts of MTT, DATM, FTD, DC and DSA, read back."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from iadd_fast import cli
from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.mtt import load_mtt_set
from iadd_fast.data import Data, load_data
from iadd_fast.data.transform import Standardise
from iadd_fast.evaluation import evaluate

SHAPE = (3, 8, 8)
STUDENT = "convnet:width=4,depth=2"


def real_arrays() -> tuple[Tensor, Tensor]:
    pixels = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(0))
    return pixels, torch.arange(12) % 3


@pytest.fixture(scope="module")
def data() -> Data:
    pixels, labels = real_arrays()
    names = np.array(["cat", "dog", "eel"])[labels.numpy()]
    return load_data(pixels, names, name="pets")


def images(seed: int = 1) -> Tensor:
    return torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def write(folder: Path, before: str = "", after: str = "best", **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        torch.save(content, folder / f"{before}{name}_{after}.pt")
    return folder / f"{before}images_{after}.pt"


def test_a_set_of_mtt_takes_the_rest_from_the_data(tmp_path: Path, data: Data) -> None:
    """Breaks if pixels are normalised once more, the classes' names or the space get lost, or
    something is made up about how the set came about."""
    write(tmp_path, images=images(), labels=LABELS)
    made = DistilledSet.from_mtt(tmp_path, data, STUDENT, lr=0.02)
    assert torch.equal(made.images, images())
    assert torch.equal(made.labels, LABELS)
    assert made.lr == 0.02
    assert made.class_names == ("cat", "dog", "eel")
    assert torch.equal(made.pixels(), data.transform.invert(images()))
    assert made.student_spec["width"] == 4
    assert made.augment == "color_crop_cutout_flip_scale_rotate"
    assert (made.data_name, made.data_fingerprint) == ("pets", data.fingerprint)
    assert (made.weight, made.config, made.summary) == (None, {}, {})


def test_the_default_student_is_the_scripts(tmp_path: Path, data: Data) -> None:
    """Breaks if a set of MTT's ConvNet is evaluated on another network unless one says so."""
    write(tmp_path, images=images(), labels=LABELS, lr=torch.tensor(0.5))
    made = DistilledSet.from_mtt(tmp_path, data)
    assert (made.student_spec["name"], made.student_spec["width"]) == ("convnet", 128)
    assert made.lr == 0.5


def test_the_round_trip_is_exact(tmp_path: Path, data: Data) -> None:
    """Breaks if a pixel, a label or the last bit of the learning rate changes on the way."""
    write(tmp_path / "first", images=images(), labels=LABELS)
    one = DistilledSet.from_mtt(tmp_path / "first", data, STUDENT, lr=0.1 + 1e-17 + 1 / 3)
    one.to_mtt(tmp_path / "second")
    two = DistilledSet.from_mtt(tmp_path / "second", data, STUDENT)
    assert torch.equal(two.images, one.images)
    assert torch.equal(two.labels, one.labels)
    assert two.lr == one.lr


def test_soft_labels_are_logits(tmp_path: Path, data: Data) -> None:
    """Breaks if DATM's logits are taken for probabilities, ours are not read back, or
    probabilities are flattened by a second softmax."""
    logits = 5 * torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
    write(tmp_path / "datm", images=images(), labels=logits, lr=0.3)
    one = DistilledSet.from_mtt(tmp_path / "datm", data, STUDENT)
    expected = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
    torch.testing.assert_close(one.labels.double(), expected, atol=1e-7, rtol=0)
    one.to_mtt(tmp_path / "ours")
    two = DistilledSet.from_mtt(tmp_path / "ours", data, STUDENT)
    torch.testing.assert_close(two.labels, one.labels, atol=2e-7, rtol=0)
    write(tmp_path / "plain", images=images(), labels=one.labels, lr=0.3)
    assert torch.equal(load_mtt_set(tmp_path / "plain").labels, one.labels)


def test_the_files_of_one_set_belong_together(tmp_path: Path) -> None:
    """Breaks if the labels or the rate of another iteration, or of the plain set beside FTD's
    average, are taken."""
    write(tmp_path, images=images(1), labels=LABELS, lr=torch.tensor(0.25))
    path = write(tmp_path, after="500", images=images(2), labels=LABELS.flip(0))
    average = write(tmp_path, "ema_", "500", images=images(3), labels=LABELS, lr=torch.tensor(0.5))
    one, two, three = map(load_mtt_set, (tmp_path, path, average))
    assert torch.equal(one.images, images(1))
    assert one.lr == 0.25
    assert torch.equal(two.images, images(2))
    assert torch.equal(two.labels, LABELS.flip(0))
    assert two.lr is None
    assert torch.equal(three.images, images(3))
    assert three.lr == 0.5


def dc_file(folder: Path) -> Path:
    """As DC's and DSA's main.py writes it; its accuracies are NumPy numbers."""
    sets = [[images(1), LABELS], [images(2), LABELS]]
    accuracies = {"ConvNet": [np.float64(0.5), np.float64(0.25)]}
    path = folder / "res_DSA_CIFAR10_ConvNet_2ipc.pt"
    torch.save({"data": sets, "accs_all_exps": accuracies}, path)
    return path


def test_a_set_of_dc(tmp_path: Path, data: Data) -> None:
    """Breaks if NumPy's accuracies make the file unreadable, or always the first set is taken."""
    path = dc_file(tmp_path)
    made = DistilledSet.from_mtt(path, data, STUDENT, lr=0.01, augment="none", experiment=1)
    assert torch.equal(made.images, images(2))
    assert made.augment is None
    with pytest.raises(ValueError, match="experiment: got 2; takes 0 to 1"):
        load_mtt_set(path, 2)
    with pytest.raises(ValueError, match="lr: missing; there is none beside .*res_DSA"):
        DistilledSet.from_mtt(path, data)


@pytest.mark.parametrize("experiment", ["x", None, 1.5, True, -1, 10**30])
def test_an_experiment_that_is_no_number_is_named(tmp_path: Path, experiment: Any) -> None:
    """Breaks if it ends in an error of an operator's, or True is the second set."""
    with pytest.raises(ValueError, match=r"experiment: got .*; takes a whole number of at"):
        load_mtt_set(dc_file(tmp_path), experiment)


def test_numbers_of_numpy_1_are_read_too(tmp_path: Path) -> None:
    """Breaks for every file of DC's that was written before NumPy renamed its module."""
    with zipfile.ZipFile(dc_file(tmp_path)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    target, new = tmp_path / "res_old.pt", b"numpy._core.multiarray"
    assert any(new in content for content in entries.values()), "there is nothing to rename"
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(new, b"numpy.core.multiarray"))
    assert torch.equal(load_mtt_set(target).images, images(1))


class Malicious:
    """Runs a command when it is unpickled the careless way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("name", ["images", "labels", "lr", "res"])
def test_no_code_in_a_file_runs(tmp_path: Path, name: str) -> None:
    """Breaks if one of the files is loaded without weights_only."""
    marker = tmp_path / "ran"
    files = {"images": images(), "labels": LABELS, "lr": 0.1}
    changed: dict[str, Any] = {**files, name: Malicious(marker)}
    write(tmp_path, **changed)
    path = tmp_path / "res_best.pt" if name == "res" else tmp_path
    with pytest.raises(ValueError, match=f"{name}_best.pt: refused"):
        load_mtt_set(path)
    assert not marker.exists()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "images of whole numbers": ({"images": images().to(torch.uint8)}, "images_best.pt: got tor"),
    "a list": ({"images": [images()]}, "images_best.pt: got a list; takes a float tensor"),
    "labels of another type": ({"labels": LABELS.int()}, "labels_best.pt: got torch.int32 of"),
    "a pair as rate": ({"lr": torch.ones(2)}, "lr_best.pt: got torch.float32 of shape (2,)"),
    "a text as rate": ({"lr": "0.1"}, "lr_best.pt: got a str; takes one number"),
    "a label too many": ({"labels": LABELS[:5]}, "labels: got torch.int64 of shape (5,)"),
    "unknown classes": ({"labels": LABELS + 1}, "labels: got 1 to 3; takes 0 to 2"),
    "other images": ({"images": torch.randn(6, 3, 9, 9)}, "samples of shape (3, 9, 9)"),
    "diverged images": ({"images": images() * torch.nan}, "values are not finite"),
    "a negative rate": ({"lr": torch.tensor(-0.1)}, "lr: got -0.1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_such_set_is_named(tmp_path: Path, data: Data, case: str) -> None:
    """Breaks if a wrong file is found out in training, or the error does not say which it is."""
    changed, told = WRONG[case]
    write(tmp_path, **{"images": images(), "labels": LABELS, "lr": 0.1, **changed})
    with pytest.raises(ValueError) as caught:
        DistilledSet.from_mtt(tmp_path, data, STUDENT)
    assert told in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_another_file_is_named(tmp_path: Path) -> None:
    """Breaks if pixels out of images_zca_N.pt are trained on, or a folder without a best set gives
    an obscure error."""
    with pytest.raises(FileNotFoundError, match="no .pt file in this folder"):
        load_mtt_set(tmp_path)
    path = write(tmp_path, after="zca_100", images=images())
    with pytest.raises(ValueError, match="images_zca_100.pt: is no distilled set; takes images_b"):
        load_mtt_set(path)
    with pytest.raises(ValueError, match="has no images_best.pt; name one of its files: images_zc"):
        load_mtt_set(tmp_path)
    path = write(tmp_path, after="100", images=images())
    with pytest.raises(FileNotFoundError, match="labels_100.pt"):
        load_mtt_set(path)
    write(tmp_path, after="100", labels=LABELS)
    with pytest.raises(ValueError, match="experiment: got 1, but .* holds one set"):
        load_mtt_set(path, 1)


def test_a_set_in_another_space_is_tested_in_it(tmp_path: Path, data: Data) -> None:
    """Breaks if the test images keep the data's own normalisation where the set has MTT's, which
    shifts all of them by 20 deviations here and leaves chance."""
    pixels, labels = real_arrays()
    theirs = Standardise(torch.full((3,), -2.0), torch.full((3,), 0.1))
    write(tmp_path, images=theirs.apply(pixels), labels=labels)
    made = DistilledSet.from_mtt(tmp_path, data, STUDENT, transform=theirs, lr=0.05, augment=None)
    everything = load_data(pixels, labels, test=pixels, test_labels=labels, validation_fraction=0)
    everything = replace(everything, fingerprint=made.data_fingerprint)
    found = evaluate(
        made, everything, networks=1, epochs=60, baselines=(), full=False, progress=False
    )
    assert found.rows[0].mean > 90


def test_on_the_command_line(tmp_path: Path) -> None:
    """Breaks if a flag is dropped, or the set written is not the one Python makes."""
    pixels, labels = real_arrays()
    np.savez(tmp_path / "pets.npz", images=pixels.numpy(), labels=labels.numpy())
    write(tmp_path / "mtt", images=images(), labels=LABELS)
    arguments = ["import-mtt", tmp_path / "mtt", tmp_path / "pets.npz"]
    arguments += ["--out", tmp_path / "set.safetensors", "--student", STUDENT, "--lr", 0.125]
    flags = ["--mean", "0.4914,0.4822,0.4465", "--std", "0.2023,0.1994,0.2010"]
    result = CliRunner().invoke(cli.app, [str(word) for word in [*arguments, *flags]])
    assert result.exit_code == 0, result.output
    made = DistilledSet.load(tmp_path / "set.safetensors")
    assert torch.equal(made.images, images())
    assert made.lr == 0.125
    assert made.student_spec["width"] == 4
    assert isinstance(made.transform, Standardise)
    torch.testing.assert_close(made.transform.mean, torch.tensor([0.4914, 0.4822, 0.4465]))
    torch.testing.assert_close(made.transform.std, torch.tensor([0.2023, 0.1994, 0.2010]))
    for wrong, told in (
        (flags[:2], "mean and std: got one of them"),
        ([*flags[:3], "a,b,c"], "std: got 'a,b,c'; takes numbers joined by commas"),
    ):
        result = CliRunner().invoke(cli.app, [str(word) for word in [*arguments, *wrong]])
        assert result.exit_code == 2
        assert told in result.stderr


def test_arguments_of_other_types_are_named(tmp_path: Path, data: Data) -> None:
    """Breaks if they end in an AttributeError."""
    nothing: Any = None
    number: Any = 5
    with pytest.raises(TypeError, match="data: got None; takes data from load_data"):
        DistilledSet.from_mtt(dc_file(tmp_path), nothing, lr=0.1)
    with pytest.raises(TypeError, match="student: got 5; takes a Student, a text or None"):
        DistilledSet.from_mtt(dc_file(tmp_path), data, number, lr=0.1)
