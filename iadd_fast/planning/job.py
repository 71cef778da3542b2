"""What is to be done: the size of the data, the network and the settings of all three jobs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from iadd_fast import arguments
from iadd_fast.augment import Augmentation
from iadd_fast.data import Data, load_data
from iadd_fast.data.transform import NORMALISATIONS
from iadd_fast.evaluation import evaluate
from iadd_fast.evaluation_inputs import baseline_names
from iadd_fast.experts import resolve_augment, resolve_student
from iadd_fast.importance import Importance, parse_importance
from iadd_fast.planning.made_up import made_up_data
from iadd_fast.preset import Preset, find_preset
from iadd_fast.settings import DistillSettings, ExpertSettings, Settings, setting
from iadd_fast.students import NAMES, Student, build, parse_student

METHOD = "trajectory"


def default_of(function: Any, name: str) -> Any:
    """The default of a keyword, so that it stands in one place."""
    return inspect.signature(function).parameters[name].default


@dataclass(frozen=True)
class DataShape:
    """A data set known by its size only.

    Attributes:
        samples: of the training part, validation included, in classes of equal size.
        shape: of one sample, ``(C, H, W)`` or ``(C, L)``. classes: how many.
        validation_fraction: of ``samples``, as :func:`iadd_fast.load_data` holds it out.
        test_fraction: test samples that there are beside them, as a share of ``samples``.
        normalise: ``"standard"``, ``"zca"`` or ``"none"``.

    Raises:
        ValueError: a value out of range; the message names it.
    """

    samples: int
    shape: tuple[int, ...]
    classes: int
    validation_fraction: float = default_of(load_data, "validation_fraction")
    test_fraction: float = default_of(load_data, "test_fraction")
    normalise: str = default_of(load_data, "normalise")

    def __post_init__(self) -> None:
        for name in ("classes", "samples"):
            kept = arguments.whole(name, getattr(self, name), 2)
            object.__setattr__(self, name, kept)
        if self.samples < self.classes:
            raise ValueError(
                f"samples: got {self.samples} for {self.classes} classes; takes at least one each"
            )
        if not isinstance(self.shape, tuple | list) or len(self.shape) not in (2, 3):
            raise ValueError(
                f"shape: got {arguments.shown(self.shape)}; takes channels, height and width, or "
                "channels and length, such as (3, 32, 32)"
            )
        sides = tuple(arguments.whole("shape", side, most=arguments.MOST) for side in self.shape)
        object.__setattr__(self, "shape", sides)
        for name in ("validation_fraction", "test_fraction"):
            share = arguments.number(name, getattr(self, name), least=0, below=1)
            object.__setattr__(self, name, share)
        arguments.choice("normalise", self.normalise, NORMALISATIONS)

    @classmethod
    def parse(cls, samples: int, shape: str, classes: int, **fractions: Any) -> Self:
        """With the shape as text: ``"3x32x32"`` or ``"1x96"``.

        Raises:
            ValueError: it is no such text, or as on construction.
        """
        sides = arguments.text("shape", shape, "one such as 3x32x32 or 1x96").lower().split("x")
        if not all(side.isdecimal() and len(side) < 10 for side in sides):
            raise ValueError(
                f"shape: got {arguments.shown(shape)}; takes one such as 3x32x32 or 1x96"
            )
        return cls(samples, tuple(int(side) for side in sides), classes, **fractions)


@dataclass(frozen=True)
class Size:
    """Samples of each part, the shape of one and the number of classes."""

    train: int
    validation: int
    test: int
    shape: tuple[int, ...]
    classes: int
    smallest_class: int
    normalise: str

    @classmethod
    def of(cls, data: Data | DataShape) -> Size:
        """The size of real data, or what :func:`iadd_fast.load_data` would make of a shape."""
        if isinstance(data, Data):
            counts = data.train.labels.bincount(minlength=data.num_classes)
            return cls(
                train=len(data.train),
                validation=len(data.validation),
                test=0 if data.test is None else len(data.test),
                shape=data.sample_shape,
                classes=data.num_classes,
                smallest_class=int(counts.min()),
                normalise=data.transform.kind,
            )
        members, more = divmod(data.samples, data.classes)
        fraction = data.validation_fraction

        def held(count: int) -> int:
            return min(max(1, round(fraction * count)), count - 1) if fraction > 0 else 0

        validation = (data.classes - more) * held(members) + more * held(members + 1)
        return cls(
            train=data.samples - validation,
            validation=validation,
            test=round(data.test_fraction * data.samples),
            shape=data.shape,
            classes=data.classes,
            smallest_class=members - held(members),
            normalise=data.normalise,
        )

    @property
    def values(self) -> int:
        """Numbers in one sample."""
        product = 1
        for side in self.shape:
            product *= side
        return product

    @property
    def training(self) -> int:
        """Training and validation part together."""
        return self.train + self.validation


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """Of :func:`iadd_fast.evaluate`, what its time depends on."""

    architectures: tuple[str, ...] = setting(
        (), "network such as resnet18 or convnet:width=32; none: the student"
    )
    networks: int = setting(default_of(evaluate, "networks"), "fresh networks per method")
    epochs: int = setting(
        default_of(evaluate, "epochs"), "epochs on the set and on real images of its size"
    )
    batch_size: int = setting(default_of(evaluate, "batch_size"), "images per step")
    baselines: tuple[str, ...] = setting(
        default_of(evaluate, "baselines"), "random, herding or k_center; or none"
    )
    full: bool = setting(default_of(evaluate, "full"), "also train on all training data")
    full_epochs: int = setting(default_of(evaluate, "full_epochs"), "epochs on all training data")
    augment: str = setting(
        default_of(evaluate, "augment"), "DSA families, none, or same: as distilled"
    )
    precision: str = setting(default_of(evaluate, "precision"), "float32 or, on a GPU, tf32")

    def __post_init__(self) -> None:
        self._whole("networks", "epochs", "batch_size", "full_epochs")
        self._choice("precision", ("float32", "tf32"))
        self._flag("full")
        self._text("augment")
        for name in ("architectures", "baselines"):
            given = arguments.instance(name, getattr(self, name), tuple | list, "a list of names")
            for entry in given:
                arguments.text(name, entry, "names")
        names = () if tuple(self.baselines) == ("none",) else tuple(self.baselines)
        object.__setattr__(self, "baselines", baseline_names(names))
        object.__setattr__(self, "architectures", tuple(self.architectures))


@dataclass(frozen=True)
class Job:
    """Everything that time, memory and disk depend on, but for the machine."""

    size: Size
    student: Student
    images_per_class: int
    importance: Importance
    experts: ExpertSettings
    distill: DistillSettings
    evaluation: EvaluationSettings

    @property
    def samples(self) -> int:
        """Samples of the distilled set."""
        return self.size.classes * self.images_per_class

    @property
    def reach(self) -> int:
        """The last epoch of an expert that the distillation looks at."""
        return self.distill.max_start_epoch + self.distill.expert_epochs

    @property
    def described(self) -> bool:
        """Whether another process can build network and policy out of their descriptions."""
        return self.student.spec.get("name") in NAMES and type(
            self.importance
        ).__module__.startswith("iadd_fast.")

    def augmentation(self, stage: str) -> Augmentation | None:
        """Of ``"experts"``, ``"distill"`` or ``"evaluation"``."""
        if stage == "evaluation" and self.evaluation.augment == "same":
            stage = "distill"
        text = getattr(self, stage).augment
        return resolve_augment(text, made_up_data(self.size.shape, self.size.classes, 0, 0))

    def network(self, architecture: str | None) -> Student:
        """The student, or the network of an evaluation."""
        if architecture is None:
            return self.student
        return _network(architecture, self.size.shape, self.size.classes)

    def changed(self, changes: Mapping[str, Mapping[str, Any]]) -> Job:
        """With other settings of ``"experts"``, ``"distill"`` or ``"evaluate"``."""
        return replace(
            self,
            experts=replace(self.experts, **changes.get("experts", {})),
            distill=replace(self.distill, **changes.get("distill", {})),
            evaluation=replace(self.evaluation, **changes.get("evaluate", {})),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; :meth:`from_dict` makes the job again where it is :attr:`described`."""
        importance = self.importance.describe()
        return {
            "size": {entry.name: getattr(self.size, entry.name) for entry in fields(Size)},
            "student": self.student.spec,
            "images_per_class": self.images_per_class,
            "importance": importance,
            "experts": self.experts.to_dict(),
            "distill": self.distill.to_dict(),
            "evaluation": self.evaluation.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Job:
        """The job of :meth:`to_dict`."""
        options = dict(values["importance"])
        name = options.pop("name")
        text = ",".join(f"{key}={_text(value)}" for key, value in options.items())
        size = {**values["size"], "shape": tuple(values["size"]["shape"])}
        return cls(
            size=Size(**size),
            student=build(values["student"]),
            images_per_class=values["images_per_class"],
            importance=parse_importance(f"{name}:{text}"),
            experts=ExpertSettings.of(**values["experts"]),
            distill=DistillSettings.of(**values["distill"]),
            evaluation=EvaluationSettings.of(**values["evaluation"]),
        )


def make_job(
    data: Data | DataShape,
    student: Student | str | None,
    images_per_class: int | None,
    importance: str | Importance,
    experts: Mapping[str, Any],
    distill: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    preset: str | None,
) -> Job:
    """The job with every default and preset filled in, checked.

    Raises:
        TypeError, ValueError: as :func:`iadd_fast.train_experts`, :func:`iadd_fast.distill` and
            :func:`iadd_fast.evaluate` raise them for the same settings.
    """
    chosen = find_preset(preset)
    if chosen is not None and chosen.method != METHOD:
        raise ValueError(
            f"preset: {chosen.name!r} is for method {chosen.method!r}; a plan takes one for "
            f"{METHOD!r}"
        )
    if chosen is not None and isinstance(data, Data):
        chosen.warn_unless_normalised(data.transform.kind)
    if images_per_class is None:
        images_per_class = 1 if chosen is None else chosen.images_per_class
    size = Size.of(data)
    images_per_class = arguments.whole("images_per_class", images_per_class)
    if images_per_class > size.smallest_class:
        raise ValueError(
            f"images_per_class: got {images_per_class}; a class has {size.smallest_class} training "
            "samples"
        )
    wanted = DistillSettings.of(**{**_preset_values(chosen, "distill"), **distill})
    reach = wanted.max_start_epoch + wanted.expert_epochs
    taught = ExpertSettings.of(**{**_preset_values(chosen, "experts"), "epochs": reach, **experts})
    if taught.epochs < reach:
        raise ValueError(
            f"epochs: got {taught.epochs}; max_start_epoch + expert_epochs is {reach}, and a "
            "distillation takes experts that reach it"
        )
    nothing = made_up_data(size.shape, size.classes, 0, 0)
    job = Job(
        size=size,
        student=resolve_student(student, nothing, chosen),
        images_per_class=images_per_class,
        importance=parse_importance(importance),
        experts=taught,
        distill=wanted,
        evaluation=EvaluationSettings.of(**{**_preset_values(chosen, "evaluate"), **evaluation}),
    )
    for stage in ("experts", "distill", "evaluation"):
        job.augmentation(stage)
    for architecture in job.evaluation.architectures:
        job.network(architecture)
    return job


@functools.cache
def _network(architecture: str, shape: tuple[int, ...], classes: int) -> Student:
    return parse_student(architecture, shape, classes)


def _preset_values(chosen: Preset | None, job: Any) -> dict[str, Any]:
    return {} if chosen is None else chosen.values(job)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
