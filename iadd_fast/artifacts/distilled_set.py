"""The result of a distillation: one file with everything that training on it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from iadd_fast import arguments
from iadd_fast.artifacts.exports import export_folder, export_parquet
from iadd_fast.artifacts.files import load_tensors, save_tensors
from iadd_fast.artifacts.migration import Migration, migrate
from iadd_fast.artifacts.mtt import load_mtt_set, save_mtt_set
from iadd_fast.augment import Augmentation
from iadd_fast.data.dataset import Data
from iadd_fast.data.transform import TENSOR_NAMES, Transform, transform_from
from iadd_fast.reading import check_memory, check_text
from iadd_fast.students import NAMES, Student, build, for_data, parse_student

KIND = "distilled set"
_TRANSFORM = "transform."
#: float32 copies of a network's parameters that are in memory while it is trained.
_COPIES = 6
#: Of what is computed with; float8 and its kin have no arithmetic.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(eq=False, kw_only=True)
class DistilledSet:
    """A distilled set and what is needed to train on it. Its tensors are on the CPU.

    Attributes:
        images: float ``[N, C, ...]`` in transformed space, class after class.
        labels: int64 ``[N]``, or float probabilities ``[N, classes]`` (each row sums to 1).
        lr: the learned learning rate alpha of the inner steps.
        weight: float ``[P]``, the importance w of each parameter in the distance
            ``||w * (theta_J - target)||^2``; ``None`` for all ones.
        class_names: one per class.
        transform: what made the training images out of the data; ``transform.apply`` is what test
            images need.
        student_spec: the network it was distilled for.
        augment: the augmentation of the inner steps as text, or ``None``.
        config: the full configuration (JSON-able). seed: of the run.
        versions: of the software it was made with.
        data_name, data_fingerprint: of the training data.
        summary: what came of the run, e.g. its best iteration and validation accuracy (JSON-able).

    Raises:
        ValueError: on construction and on loading, when a shape, dtype or value does not fit; the
            message names the attribute.
        TypeError: ``transform`` is not a ``Transform``.
    """

    images: Tensor
    labels: Tensor
    lr: float
    weight: Tensor | None = None
    class_names: tuple[str, ...]
    transform: Transform
    student_spec: dict[str, Any]
    augment: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    versions: dict[str, Any] = field(default_factory=dict)
    data_name: str = ""
    data_fingerprint: str = ""
    summary: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rate: Any = self.lr
        if isinstance(rate, Tensor) and arguments.tensor("lr", rate).ndim == 0:
            rate = rate.item()
        self.lr = arguments.number("lr", rate, above=0)
        self.seed = arguments.whole("seed", self.seed, -arguments.LARGEST)
        arguments.instance("class_names", self.class_names, tuple | list, "one text per class")
        self.class_names = tuple(self.class_names)
        self.images = arguments.tensor("images", self.images).detach().cpu()
        self.labels = arguments.tensor("labels", self.labels).detach().cpu()
        if self.weight is not None:
            self.weight = arguments.tensor("weight", self.weight).detach().cpu()
        self._check()

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return (
            f"DistilledSet({self.data_name!r}, {len(self)} x {tuple(self.images.shape[1:])}, "
            f"{self.num_classes} classes, lr {self.lr:.4g}, {self.nbytes:,} bytes)"
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def images_per_class(self) -> int:
        """Samples per class (the whole part of their mean where classes differ)."""
        return len(self.images) // self.num_classes

    @property
    def nbytes(self) -> int:
        """Bytes of the images and labels together."""
        return self.images.nbytes + self.labels.nbytes

    def pixels(self) -> Tensor:
        """The images ``[N, C, ...]`` in the space of the original data: the transform undone."""
        return self.transform.invert(self.images)

    def student(self) -> Student:
        """The network the set was distilled for.

        Raises:
            ValueError: it was a user's own module, which no file describes.
        """
        return build(self.student_spec)

    def as_dataset(self) -> TensorDataset:
        """A dataset of (image, label), images in transformed space."""
        return TensorDataset(self.images, self.labels)

    def to_mtt(self, folder: str | Path) -> None:
        """Export as ``images_best.pt``, ``labels_best.pt`` and ``lr_best.pt`` in ``folder``.

        Read by MTT, DC-BENCH, DATM's evaluator and DD-Ranking. The images are in transformed space.
        Soft labels are written as log-probabilities, because those tools take logits and apply the
        softmax themselves. :meth:`from_mtt` reads the files back: samples, hard labels and lr
        exactly, soft labels to the rounding of float32.
        """
        labels = self.labels
        if labels.is_floating_point():
            labels = labels.clamp_min(torch.finfo(labels.dtype).tiny).log()
        save_mtt_set(folder, self.images, labels, self.lr)

    @classmethod
    def from_mtt(
        cls,
        path: str | Path,
        data: Data,
        student: Student | str | None = None,
        *,
        transform: Transform | None = None,
        lr: float | None = None,
        augment: str | Augmentation | None = "auto",
        experiment: int = 0,
    ) -> DistilledSet:
        """A set in MTT's layout (:meth:`to_mtt`; MTT, TESLA, FTD, DATM), or DC's or DSA's.

        Those files hold samples and labels, most a learning rate; the rest has to come from
        ``data`` and from the caller. What they do not say is not made up: ``config`` is empty.

        Args:
            path: see :func:`~iadd_fast.artifacts.mtt.load_mtt_set`.
            data: the data it was distilled from: class names, name, fingerprint.
            student: the network it is for; default: the ConvNet of the data's shape (width 128).
            transform: the space of the images; default: that of ``data``. The scripts normalise
                CIFAR-10 and CIFAR-100 by mean (0.4914, 0.4822, 0.4465) and std (0.2023, 0.1994,
                0.2010), which are not the ones of the data: give ``Standardise`` with those.
            lr: the learning rate to train with, before that of the files. MTT saves none; DC and
                DSA evaluate with 0.01.
            augment: what networks are trained with on it; ``"auto"``: DSA for images.
            experiment: which of the sets in DC's or DSA's file.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError: ``data`` or ``student`` is of another type.
            ValueError: the files hold something else or do not fit ``data``, or ``lr`` is missing.
        """
        arguments.instance("data", data, Data, "data from load_data")
        arguments.instance("student", student, Student | str | None, "a Student, a text or None")
        read = load_mtt_set(path, experiment)
        rate = read.lr if lr is None else lr
        if rate is None:
            raise ValueError(f"lr: missing; there is none beside {read.where}")
        shape = tuple(read.images.shape[1:])
        if shape != data.sample_shape:
            raise ValueError(
                f"{read.where}: holds samples of shape {shape}; those of {data.name!r} have "
                f"{data.sample_shape}"
            )
        if student is None:
            student = for_data(shape, data.num_classes)
        elif isinstance(student, str):
            student = parse_student(student, shape, data.num_classes)
        if augment == "auto":
            augment = "dsa" if len(shape) == 3 else None
        families = Augmentation.parse(augment)
        try:
            return cls(
                images=read.images,
                labels=read.labels,
                lr=rate,
                class_names=data.class_names,
                transform=data.transform if transform is None else transform,
                student_spec=student.spec,
                augment=None if families is None else str(families),
                data_name=data.name,
                data_fingerprint=data.fingerprint,
            )
        except ValueError as error:
            raise ValueError(f"{read.where}: {error}") from None

    def to_folder(self, path: str | Path, pixel_range: tuple[float, float] = (0.0, 1.0)) -> None:
        """Export as class folders of PNG files (series: as arrays); see :func:`export_folder`."""
        export_folder(self, path, pixel_range)

    def to_parquet(self, path: str | Path, pixel_range: tuple[float, float] = (0.0, 1.0)) -> None:
        """Export as a Parquet file for Hugging Face ``datasets``; see :func:`export_parquet`."""
        export_parquet(self, path, pixel_range)

    def save(self, path: str | Path) -> None:
        """Write everything into the one safetensors file ``path``, whole or not at all.

        Raises:
            ValueError: something was changed to what does not fit, or ``config``, ``versions`` or
                ``summary`` hold what JSON has no form for.
        """
        self._check()
        self._check_student()  # as load does, so that what is written is read
        tensors = {"images": self.images, "labels": self.labels}
        if self.weight is not None:
            tensors["weight"] = self.weight
        for name, tensor in self.transform.tensors().items():
            tensors[_TRANSFORM + name] = tensor
        metadata: dict[str, Any] = {"kind": KIND, "schema": SCHEMA}
        for name in _json_fields():
            metadata[name] = getattr(self, name)
        metadata["tensors"] = sorted(tensors)
        metadata["transform"] = {
            "kind": self.transform.kind,
            "metadata": self.transform.metadata(),
        }
        save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> DistilledSet:
        """The set in ``path``, exactly as it was saved, on the CPU; of every schema version so far.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, another kind of file, of a newer schema, or something in it
                is missing, too much or does not fit.
        """
        tensors, metadata = load_tensors(path)
        metadata = migrate(path, metadata, KIND, MIGRATIONS)
        described = metadata.get("transform")
        if not (
            isinstance(described, Mapping)
            and {"kind", "metadata"} <= described.keys()
            and isinstance(described["metadata"], Mapping)
        ):
            raise ValueError(f"{path}: does not describe its transform")
        missing = [name for name in _json_fields() if name not in metadata]
        told = metadata.get("tensors")
        if not isinstance(told, list) or not all(isinstance(name, str) for name in told):
            raise ValueError(f"{path}: does not say which tensors it holds")
        missing += [name for name in ("images", "labels", *told) if name not in tensors]
        if missing:
            raise ValueError(f"{path}: lacks {', '.join(dict.fromkeys(missing))[:200]}")
        unknown = set(tensors) - {"images", "labels", "weight", *told}
        if unknown:
            raise ValueError(f"{path}: holds {min(unknown)[:40]!r}, which no distilled set has")
        own = {
            name.removeprefix(_TRANSFORM): tensor
            for name, tensor in tensors.items()
            if name.startswith(_TRANSFORM)
        }
        _check_json_types(path, metadata)
        try:
            made = cls(
                images=tensors["images"],
                labels=tensors["labels"],
                weight=tensors.get("weight"),
                transform=transform_from(described["kind"], own, described["metadata"]),
                **{name: metadata[name] for name in _json_fields()},
            )
            made._check_student()
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: {error}") from None
        return made

    def _check(self) -> None:
        images, classes = self.images, self.num_classes
        if classes < 1 or not all(isinstance(name, str) for name in self.class_names):
            raise ValueError(
                f"class_names: got {arguments.shown(self.class_names)}; takes one text per class"
            )
        for name in (*self.class_names, arguments.text("data_name", self.data_name)):
            check_text(name)
        if images.dtype not in _FLOATS or images.ndim < 2 or images.numel() == 0:
            raise ValueError(
                f"images: got {images.dtype} of shape {tuple(images.shape)}; "
                "takes floats (N, channels, ...)"
            )
        _check_finite("images", images)
        self._check_labels()
        arguments.number("lr", self.lr, above=0)
        for name in ("student_spec", "config", "versions", "summary"):
            arguments.instance(name, getattr(self, name), dict, "a dict")
        arguments.text("data_fingerprint", self.data_fingerprint)
        if self.augment is not None:
            Augmentation.parse(arguments.text("augment", self.augment, "a text or None"))
        if not isinstance(self.transform, Transform):
            raise TypeError(f"transform: got {type(self.transform).__name__}; takes a Transform")
        try:
            self.transform.invert(images[:1])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"transform: does not fit the images: {error}") from None
        self._check_weight()

    def _check_labels(self) -> None:
        labels, count, classes = self.labels, len(self.images), self.num_classes
        shape = tuple(labels.shape)
        if labels.dtype == torch.int64 and shape == (count,):
            if int(labels.min()) < 0 or int(labels.max()) >= classes:
                raise ValueError(
                    f"labels: got {int(labels.min())} to {int(labels.max())}; takes 0 to "
                    f"{classes - 1}"
                )
        elif labels.dtype in _FLOATS and shape == (count, classes):
            _check_finite("labels", labels)
            if bool((labels < 0).any()) or bool(((labels.double().sum(1) - 1).abs() > 1e-3).any()):
                raise ValueError("labels: soft labels are probabilities: none below 0, sum 1")
        else:
            raise ValueError(
                f"labels: got {labels.dtype} of shape {shape}; takes torch.int64 ({count},) or "
                f"float probabilities ({count}, {classes})"
            )

    def _check_weight(self) -> None:
        weight = self.weight
        if weight is None:
            return
        if weight.dtype not in _FLOATS or weight.ndim != 1:
            raise ValueError(
                f"weight: got {weight.dtype} of shape {tuple(weight.shape)}; takes floats "
                "(parameters,)"
            )
        _check_finite("weight", weight)
        student = self._shape_of_student()
        if student is not None and len(weight) != student.num_parameters:
            raise ValueError(
                f"weight: got {len(weight)} values; the student has {student.num_parameters} "
                "parameters"
            )

    def _check_student(self) -> None:
        """The network takes the images and has the classes; a file can say anything of it."""
        student = self._shape_of_student()
        if student is None:
            return
        # What training holds of it: parameters, gradient, momentum, and copies of each.
        check_memory(
            f"student_spec: a network of {student.num_parameters:,} parameters",
            _COPIES * 4 * student.num_parameters,
        )
        image = self.images[:1].to("meta")
        theta = torch.empty(student.num_parameters, dtype=image.dtype, device="meta")
        try:
            logits = student.apply(theta, image)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"student_spec: does not fit the images: {error}") from None
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"student_spec: has {logits.shape[1]} classes; the set has {self.num_classes}"
            )

    def _shape_of_student(self) -> Student | None:
        """The student without memory for its parameters; None for a user's own module."""
        if self.student_spec.get("name") not in NAMES:
            return None
        with torch.device("meta"):
            return build(self.student_spec)


def _name_the_tensors(metadata: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 said of one tensor only whether it is there; schema 2 has the names of all."""
    described = metadata.get("transform")
    kind = described.get("kind") if isinstance(described, Mapping) else None
    own = TENSOR_NAMES.get(str(kind), ())
    weight = ["weight"] if metadata.pop("has_weight", False) else []
    names = ["images", "labels", *weight, *(_TRANSFORM + name for name in own)]
    return {**metadata, "tensors": sorted(names)}


#: Entry k makes the metadata of schema k + 1 into that of schema k + 2.
MIGRATIONS: tuple[Migration, ...] = (_name_the_tensors,)
SCHEMA = len(MIGRATIONS) + 1


def _json_fields() -> list[str]:
    """The attributes that go into the metadata as they are."""
    elsewhere = ("images", "labels", "weight", "transform")
    return [entry.name for entry in fields(DistilledSet) if entry.name not in elsewhere]


def _check_json_types(path: str | Path, metadata: Mapping[str, Any]) -> None:
    expected: dict[str, type | tuple[type, ...]] = {
        "lr": (int, float),
        "class_names": list,
        "student_spec": dict,
        "augment": (str, type(None)),
        "config": dict,
        "seed": int,
        "versions": dict,
        "data_name": str,
        "data_fingerprint": str,
        "summary": dict,
    }
    for name, kind in expected.items():
        if not isinstance(metadata[name], kind):
            raise ValueError(f"{path}: {name}: got a {type(metadata[name]).__name__}")


def _check_finite(name: str, tensor: Tensor) -> None:
    bad = int(tensor.numel() - torch.isfinite(tensor).sum())
    if bad:
        raise ValueError(f"{name}: {bad:,} of {tensor.numel():,} values are not finite")
