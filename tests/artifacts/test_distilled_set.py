"""The distilled set: one file in, the same set out, and nothing else accepted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.files import load_tensors, save_tensors
from iadd_fast.data.transform import ZCA, Identity, Standardise, Transform
from iadd_fast.students import mlp

SHAPE = (3, 4, 4)


def real_images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(200, *SHAPE, generator=generator) * torch.tensor([0.5, 1, 2]).view(3, 1, 1)


def transforms() -> dict[str, Transform]:
    data = real_images()
    return {"none": Identity(), "standard": Standardise.fit(data), "zca": ZCA.fit(data)}


def make(**changes: Any) -> DistilledSet:
    student = mlp(inputs=SHAPE, classes=2, width=3, depth=2)
    transform = changes.get("transform", transforms()["standard"])
    options: dict[str, Any] = {
        "images": transform.apply(real_images()[:4]),
        "labels": torch.tensor([0, 0, 1, 1]),
        "lr": 0.1 + 1e-17 + 1 / 3,
        "weight": torch.linspace(0.5, 1.5, student.num_parameters),
        "class_names": ("größer", "kleiner"),
        "transform": transform,
        "student_spec": student.spec,
        "augment": "color_crop",
        "config": {"images_per_class": 2, "nested": {"lr": 1e-7, "list": [1, None, True]}},
        "seed": 2**62 + 3,
        "versions": {"torch": "2.13"},
        "data_name": "random",
        "data_fingerprint": "ab" * 32,
        "summary": {"best_iteration": 10, "validation_accuracy": 91.5},
    }
    return DistilledSet(**{**options, **changes})


def edit(path: Path, **changes: Any) -> None:
    """Rewrite the file with some of its tensors or metadata changed; None drops one."""
    tensors, metadata = load_tensors(path)
    for name, value in changes.items():
        into: dict[str, Any] = tensors if name in tensors else metadata
        if value is None:
            del into[name]
        else:
            into[name] = value
    save_tensors(path, tensors, metadata)


@pytest.mark.parametrize("kind", ["none", "standard", "zca"])
@pytest.mark.parametrize("soft", [False, True])
def test_round_trip_is_exact(tmp_path: Path, kind: str, soft: bool) -> None:
    """Breaks if one bit of a tensor, the learning rate, the seed or a piece of text is changed."""
    labels = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0, 1]])
    changes = {"labels": labels, "weight": None, "augment": None} if soft else {}
    one = make(transform=transforms()[kind], **changes)
    path = tmp_path / "set.safetensors"
    one.save(path)
    two = DistilledSet.load(path)
    assert torch.equal(two.images, one.images)
    assert torch.equal(two.labels, one.labels)
    assert two.labels.dtype == one.labels.dtype
    if one.weight is None:
        assert two.weight is None
    else:
        assert two.weight is not None
        assert torch.equal(two.weight, one.weight)
    names = ("lr", "class_names", "student_spec", "augment", "config", "seed", "versions")
    for name in (*names, "data_name", "data_fingerprint", "summary"):
        assert getattr(two, name) == getattr(one, name), name
    assert two.transform.kind == kind
    images = real_images()
    assert torch.equal(two.transform.apply(images), one.transform.apply(images))
    assert torch.equal(two.pixels(), one.pixels())
    two.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["none", "standard", "zca"])
def test_pixels_are_the_data(kind: str) -> None:
    """Breaks if pixels() applies the transform instead of undoing it."""
    one = make(transform=transforms()[kind])
    torch.testing.assert_close(one.pixels(), real_images()[:4], rtol=1e-3, atol=1e-3)


def test_what_it_says_of_itself() -> None:
    """Breaks if bytes or classes are counted wrongly, or the dataset pairs other labels."""
    one = make()
    assert (one.num_classes, one.images_per_class, len(one)) == (2, 2, 4)
    assert one.nbytes == 4 * 48 * 4 + 4 * 8
    image, label = one.as_dataset()[2]
    assert torch.equal(image, one.images[2])
    assert int(label) == 1
    student = one.student()
    assert one.weight is not None
    assert student.num_parameters == len(one.weight)
    assert student.spec == one.student_spec


def test_gradients_stay_behind() -> None:
    """Breaks if the set keeps the graph of a whole distillation alive."""
    one = make(images=make().images.requires_grad_())
    assert not one.images.requires_grad


def test_to_mtt(tmp_path: Path) -> None:
    """Breaks if the images leave transformed space, or the order of the classes changes."""
    one = make()
    one.to_mtt(tmp_path)
    images = torch.load(tmp_path / "images_best.pt", weights_only=True)
    labels = torch.load(tmp_path / "labels_best.pt", weights_only=True)
    lr = torch.load(tmp_path / "lr_best.pt", weights_only=True)
    assert torch.equal(images, one.images)
    assert torch.equal(labels, one.labels)
    assert float(lr) == pytest.approx(one.lr)


def test_to_mtt_writes_soft_labels_as_logits(tmp_path: Path) -> None:
    """Breaks if DATM's evaluator, which applies a softmax, would see flattened probabilities."""
    soft = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.0, 1.0]])
    make(labels=soft).to_mtt(tmp_path)
    logits = torch.load(tmp_path / "labels_best.pt", weights_only=True)
    assert bool(torch.isfinite(logits).all())
    torch.testing.assert_close(logits.softmax(1), soft)


def with_value(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[1] = value
    return changed


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nan image": ({"images": with_value(torch.zeros(4, *SHAPE), torch.nan)}, "images: 1 of 192"),
    "int images": ({"images": torch.zeros(4, *SHAPE).int()}, "images: got torch.int32"),
    "no images": ({"images": torch.zeros(0, *SHAPE)}, "images: got torch.float32 of shape (0,"),
    "fewer labels": ({"labels": torch.tensor([0, 1])}, "labels: got torch.int64 of shape (2,)"),
    "int32 labels": ({"labels": torch.zeros(4).int()}, "labels: got torch.int32"),
    "unknown class": ({"labels": torch.tensor([0, 0, 1, 2])}, "labels: got 0 to 2; takes 0 to 1"),
    "logits": ({"labels": torch.full((4, 2), 3.0)}, "labels: soft labels are probabilities"),
    "negative": ({"labels": torch.tensor([[1.5, -0.5]] * 4)}, "labels: soft labels are prob"),
    "soft of 3": (
        {"labels": torch.full((4, 3), 1 / 3)},
        "labels: got torch.float32 of shape (4, 3)",
    ),
    "short weight": ({"weight": torch.ones(7)}, "weight: got 7 values; the student has"),
    "nan weight": ({"weight": torch.full((5,), torch.nan)}, "weight: 5 of 5"),
    "2d weight": ({"weight": torch.ones(2, 2)}, "weight: got torch.float32 of shape (2, 2)"),
}
BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "zero lr": ({"lr": 0.0}, "lr: got 0.0"),
    "nan lr": ({"lr": float("nan")}, "lr: got nan"),
    "no classes": ({"class_names": ()}, "class_names: got ()"),
}


@pytest.mark.parametrize("case", [*BAD, *BAD_VALUES])
def test_what_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    """Breaks if a broken set can be made, or can be saved over a good file after a change to it."""
    changes, text = {**BAD, **BAD_VALUES}[case]
    with pytest.raises(ValueError, match=r"^\w+: ") as caught:
        make(**changes)
    assert str(caught.value).startswith(text)
    one, path = make(), tmp_path / "set.safetensors"
    one.save(path)
    before = path.read_bytes()
    for name, value in changes.items():
        setattr(one, name, value)
    with pytest.raises(ValueError, match=r"^\w+: "):
        one.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("case", list(BAD))
def test_a_file_with_wrong_tensors_is_refused(tmp_path: Path, case: str) -> None:
    """Breaks if a file is trusted: shapes, dtypes and NaN have to be checked before use."""
    changes, text = BAD[case]
    path = tmp_path / "set.safetensors"
    make().save(path)
    edit(path, **changes)
    with pytest.raises(ValueError, match=r"set.safetensors: ") as caught:
        DistilledSet.load(path)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"schema": 3}, "written by a newer iadd_fast (schema version 3; this one reads up to 2)"),
        ({"kind": "expert"}, "holds 'expert'; expected 'distilled set'"),
        ({"images": None}, "lacks images"),
        ({"labels": None, "class_names": None}, "lacks class_names, labels"),
        ({"weight": None}, "lacks weight"),
        ({"lr": None}, "lacks lr"),
        ({"lr": "fast"}, "lr: got a str"),
        ({"class_names": "ab"}, "class_names: got a str"),
        ({"transform": None}, "does not describe its transform"),
        ({"transform.mean": None}, "set.safetensors: "),
        ({"transform": {"kind": "magic", "metadata": {}}}, "magic"),
    ],
)
def test_a_file_that_lacks_something_is_refused(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    """Breaks if an incomplete or newer file gives a KeyError, or loads with a silent default."""
    path = tmp_path / "set.safetensors"
    make().save(path)
    edit(path, **changes)
    with pytest.raises(ValueError, match=r"set.safetensors: ") as caught:
        DistilledSet.load(path)
    assert text in str(caught.value)


def test_a_transform_of_other_images_is_refused() -> None:
    """Breaks if whitening of another image size is found only when the test set goes through it."""
    other = ZCA.fit(torch.rand(50, 1, 5, 5))
    with pytest.raises(ValueError, match="^transform: "):
        replace(make(), transform=other)
    grey = torch.rand(4, 1, 4, 4)
    with pytest.raises(ValueError, match="^transform: "):
        replace(make(), images=grey)
    name: Any = "zca"
    with pytest.raises(TypeError, match="transform: got str"):
        replace(make(), transform=name)


def test_other_files_are_refused(tmp_path: Path) -> None:
    """Breaks if MTT's images_best.pt, or anybody's safetensors, gives an obscure error."""
    path = tmp_path / "images_best.pt"
    with pytest.raises(FileNotFoundError, match=r"images_best.pt"):
        DistilledSet.load(path)
    torch.save(torch.ones(3), path)
    with pytest.raises(ValueError, match="images_best.pt: is not a safetensors file"):
        DistilledSet.load(path)
    save_file({"images": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="not one of iadd_fast's"):
        DistilledSet.load(path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        DistilledSet.load(tmp_path)


def test_values_without_json_form_are_refused(tmp_path: Path) -> None:
    """Breaks if a pickle sneaks in, or half a file stays behind."""
    with pytest.raises(ValueError, match="metadata: cannot be written as JSON"):
        make(config={"path": Path()}).save(tmp_path / "set.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_users_own_module_loads(tmp_path: Path) -> None:
    """Breaks if a set distilled on a module that no file describes cannot be loaded at all."""
    one = make(student_spec={"name": "module", "module": "Mine"}, weight=torch.ones(7))
    one.save(tmp_path / "set.safetensors")
    two = DistilledSet.load(tmp_path / "set.safetensors")
    assert two.student_spec == {"name": "module", "module": "Mine"}
    with pytest.raises(ValueError, match="module"):
        two.student()


def test_a_student_beyond_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a file of two kilobytes names a network whose evaluation takes all memory."""
    path = tmp_path / "set.safetensors"
    one = make(weight=None)
    one.student_spec = {**one.student_spec, "width": 15_000, "depth": 3}
    one.save(path)
    monkeypatch.setattr("iadd_fast.arguments.memory_of_machine", lambda: 4 * 2**30)
    with pytest.raises(ValueError, match=r"student_spec: a network of 225,\d+,\d+ param.* 5.0 GiB"):
        DistilledSet.load(path)
    monkeypatch.setattr("iadd_fast.arguments.memory_of_machine", lambda: 6 * 2**30)
    DistilledSet.load(path)
