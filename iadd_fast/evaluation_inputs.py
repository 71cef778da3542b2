"""What an evaluation is given: checked, named and brought into one space."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.artifacts import DistilledSet
from iadd_fast.baselines import BASELINES
from iadd_fast.data import Data, Split
from iadd_fast.data.transform import Transform
from iadd_fast.students import Student, parse_student


def baseline_names(baselines: Sequence[str]) -> tuple[str, ...]:
    arguments.instance("baselines", baselines, str | Sequence, "a list of names")
    names = (baselines,) if isinstance(baselines, str) else tuple(baselines)
    for name in names:
        arguments.choice("baselines", name, BASELINES)
    return tuple(dict.fromkeys(names))


def check_data(distilled: DistilledSet, data: Data) -> Split:
    if data.test is None or len(data.test) == 0:
        raise ValueError(
            f"data: got {data.name!r} without a test part; "
            "load it with test= or with a test_fraction above 0"
        )
    shape = tuple(distilled.images.shape[1:])
    if shape != tuple(data.sample_shape):
        raise ValueError(
            f"data: got samples of shape {tuple(data.sample_shape)}; "
            f"the distilled set takes samples of shape {shape}"
        )
    if distilled.num_classes != data.num_classes:
        raise ValueError(
            f"data: got {data.num_classes} classes; the distilled set has {distilled.num_classes}"
        )
    if distilled.data_fingerprint != data.fingerprint:
        warnings.warn(
            f"the set was distilled from other data ({distilled.data_name!r}, fingerprint "
            f"{distilled.data_fingerprint[:12]}) than it is evaluated with ({data.name!r}, "
            f"fingerprint {data.fingerprint[:12]}); its test images may have been seen in "
            "distillation, or its classes may be in another order",
            UserWarning,
            stacklevel=3,
        )
    return data.test


def check_beside(
    name: str, other: DistilledSet, distilled: DistilledSet, taken: Sequence[str]
) -> None:
    arguments.text("beside", name, "names that are texts")
    arguments.instance("beside", other, DistilledSet, "DistilledSets")
    if name in taken:
        raise ValueError(f"beside: got the name {name!r}, which is taken")
    for what, theirs, ours in (
        ("samples of shape", other.images.shape[1:], distilled.images.shape[1:]),
        ("the classes", other.class_names, distilled.class_names),
        ("data with fingerprint", other.data_fingerprint, distilled.data_fingerprint),
    ):
        if theirs != ours:
            raise ValueError(f"beside: {name!r} has {what} {theirs}; the distilled set has {ours}")
    if not _same_transform(other.transform, distilled.transform):
        raise ValueError(
            f"beside: {name!r} went through another transform ({other.transform.kind}) than the "
            f"distilled set ({distilled.transform.kind})"
        )


def students_of(
    distilled: DistilledSet,
    data: Data,
    architectures: Sequence[str | Student] | str | Student | None,
) -> dict[str, Student]:
    own = distilled.student_spec.get("name")
    wanted: Iterable[str | Student | None]
    if architectures is None or isinstance(architectures, str | Student):
        wanted = (architectures,)
    else:
        arguments.instance("architectures", architectures, Sequence, "names and students")
        wanted = tuple(architectures)
    students: dict[str, Student] = {}
    for entry in wanted:
        if isinstance(entry, Student):
            name, student = str(entry.spec.get("name", "module")), entry
            _check_student(name, student, data)
        elif entry is None or entry == own:
            name, student = str(own), distilled.student()
        else:
            name = entry
            student = parse_student(name, tuple(data.sample_shape), data.num_classes)
        if name in students:
            raise ValueError(f"architectures: got {name!r} twice; takes different names")
        students[name] = student
    if not students:
        raise ValueError("architectures: got none; takes at least one name or student")
    return students


def _check_student(name: str, student: Student, data: Data) -> None:
    sample = data.train.images[:1]
    logits = student.apply(student.init(0, sample.device, sample.dtype), sample)
    if tuple(logits.shape) != (1, data.num_classes):
        raise ValueError(
            f"architectures: got a student {name!r} with output {tuple(logits.shape)} for one "
            f"sample; takes one of shape (1, {data.num_classes})"
        )


def space_of(distilled: DistilledSet, data: Data) -> Callable[[Tensor], Tensor]:
    """Moves images of ``data`` into the space of ``distilled``."""
    ours, theirs = distilled.transform, data.transform
    if _same_transform(ours, theirs):
        return lambda images: images
    return lambda images: ours.apply(theirs.invert(images.cpu()))


def _same_transform(one: Transform, other: Transform) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return (
        one.kind == other.kind
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[key].cpu(), theirs[key].cpu()) for key in ours)
    )
