"""How good a distilled set is: MTT's protocol, beside baselines of the same size and the full data.

The protocol is ``evaluate_synset`` of MTT: fresh networks, SGD with momentum 0.9 and weight decay
5e-4, the learning rate cut to a tenth (and the momentum dropped) half-way, augmentation on every
batch, one test at the end. A distilled set trains with its own learned learning rate.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from iadd_fast import seeds
from iadd_fast.artifacts import DistilledSet
from iadd_fast.augment import Augmentation
from iadd_fast.baselines import BASELINES, select
from iadd_fast.data import Data, Split
from iadd_fast.devices import resolve_device
from iadd_fast.evaluation_rows import Evaluation, EvaluationRow
from iadd_fast.students import Student, parse_student
from iadd_fast.training import accuracy, train, train_many

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
DISTILLED = "iadd"
FULL = "full"


@dataclass
class _Contender:
    method: str
    lr: float
    epochs: int
    training_set: Callable[[int], tuple[Tensor, Tensor]]


def evaluate(
    distilled: DistilledSet,
    data: Data,
    architectures: Sequence[str | Student] | str | Student | None = None,
    *,
    networks: int = 5,
    epochs: int = 1000,
    batch_size: int = 256,
    baselines: Sequence[str] = BASELINES,
    full: bool = True,
    full_epochs: int = 50,
    baseline_lr: float = 0.01,
    augment: str | Augmentation | None = "same",
    seed: int = 0,
    precision: str = "float32",
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Train fresh networks on the distilled set and on real images; test each once, at the end.

    Test and baseline images are brought into the space of ``distilled`` (its transform), also where
    ``data`` was loaded with another normalisation. The n-th network of an architecture starts from
    the same parameters for every method. ``"random"`` draws its images anew for each network, so
    its spread includes the draw; ``"herding"`` and ``"k_center"`` choose once, on the flattened
    transformed pixels (at one image per class both choose the image nearest to the class mean).
    All of them choose from the training and the validation part together.

    The networks of a row train together: on a GPU several side by side, on a CPU one after another.
    The seconds of a row are the time that takes divided by the number of its networks; one network
    alone would take longer than that on a GPU.

    Args:
        distilled: the set; trained on with its learned learning rate ``distilled.lr``.
        data: where the test part, the baselines and the full data come from.
        architectures: names (``"resnet18"``, ``"convnet:width=32"``) or students; default: the
            student the set was distilled for, which is also what its own name alone stands for.
        networks: fresh networks for each method and architecture.
        epochs: for the distilled set and the baselines of its size. full_epochs: for the full data.
        baselines: any of ``"random"``, ``"herding"``, ``"k_center"``.
        full: also train on all training images.
        baseline_lr: learning rate wherever real images are trained on.
        precision: products in training in ``"float32"``, or on a GPU in ``"tf32"``.
        augment: ``"same"`` as in distillation, another augmentation, or None.
        device: default: a GPU where there is one.

    Raises:
        ValueError: an argument is out of range or unknown; ``data`` has no test part, or samples of
            another shape or another number of classes than ``distilled``; a class has fewer
            training images than the baselines are to choose.

    Warns:
        UserWarning: the set was distilled from other data (its fingerprint differs).
    """
    for name, number in (
        ("networks", networks),
        ("epochs", epochs),
        ("batch_size", batch_size),
        ("full_epochs", full_epochs),
    ):
        if number < 1:
            raise ValueError(f"{name}: got {number}; takes a whole number of at least 1")
    if not (math.isfinite(baseline_lr) and baseline_lr > 0):
        raise ValueError(f"baseline_lr: got {baseline_lr}; takes a positive number")
    baselines = _names(baselines)
    test = _check_data(distilled, data)
    students = _students(distilled, data, architectures)
    families = Augmentation.parse(distilled.augment if augment == "same" else augment)
    device = resolve_device(device)

    to_space = _space_of(distilled, data)
    test_images, test_labels = to_space(test.images).to(device), test.labels.to(device)
    contenders = [_distilled_contender(distilled, epochs, device)]
    if baselines or full:
        training = data.all_training()
        real = to_space(training.images), training.labels
        for name in baselines:
            contenders.append(
                _baseline_contender(
                    name, *real, distilled.images_per_class, baseline_lr, epochs, seed, device
                )
            )
        if full:
            everything = real[0].to(device), real[1].to(device)
            contenders.append(_Contender(FULL, baseline_lr, full_epochs, lambda _: everything))

    rows = []
    total = len(contenders) * len(students) * networks
    with tqdm(total=total, desc="evaluate", unit="network", disable=not progress) as bar:
        for architecture, student in students.items():
            _warm_up(student, contenders[0], batch_size, families)
            for contender in contenders:
                bar.set_description(f"{contender.method}, {architecture}")
                sets = [contender.training_set(network) for network in range(networks)]
                prefix = (seed, "evaluation", architecture)
                first = [seeds.derive(*prefix, k, "init") for k in range(networks)]
                thetas = torch.stack([student.init(number, device) for number in first])
                started = _clock(device)
                thetas = train_many(
                    student,
                    thetas,
                    sets,
                    seeds=[seeds.derive(*prefix, k, "train") for k in range(networks)],
                    lr=contender.lr,
                    epochs=contender.epochs,
                    batch_size=batch_size,
                    momentum=MOMENTUM,
                    weight_decay=WEIGHT_DECAY,
                    decay=True,
                    augment=families,
                    on_epoch=_on_last(contender.epochs, bar.update),
                    precision=precision,
                )
                seconds = (_clock(device) - started) / networks
                results = [accuracy(student, theta, test_images, test_labels) for theta in thetas]
                bar.set_postfix_str(f"accuracy {statistics.fmean(results):.1f} %")
                images, labels = sets[0]
                rows.append(
                    EvaluationRow(
                        contender.method,
                        architecture,
                        results,
                        seconds,
                        images.nbytes + labels.nbytes,
                        len(images),
                    )
                )
    settings = {
        "networks": networks,
        "epochs": epochs,
        "full_epochs": full_epochs if full else None,
        "batch_size": batch_size,
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
        "distilled_lr": float(distilled.lr),
        "baseline_lr": baseline_lr,
        "augment": None if families is None else str(families),
        "seed": seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "data_name": data.name,
        "data_fingerprint": data.fingerprint,
        "test_images": len(test),
    }
    return Evaluation(rows, settings)


def _distilled_contender(distilled: DistilledSet, epochs: int, device: torch.device) -> _Contender:
    own = distilled.images.to(device), distilled.labels.to(device)
    return _Contender(DISTILLED, float(distilled.lr), epochs, lambda _: own)


def _baseline_contender(
    name: str,
    images: Tensor,
    labels: Tensor,
    per_class: int,
    lr: float,
    epochs: int,
    seed: int,
    device: torch.device,
) -> _Contender:
    def chosen(indices: Tensor) -> tuple[Tensor, Tensor]:
        indices = indices.to(images.device)
        return images[indices].to(device), labels[indices].to(device)

    # drawn here also for "random", so that a class with too few images is an error before training
    first = chosen(select(name, images, labels, per_class, seeds.derive(seed, "evaluation", 0)))

    def training_set(network: int) -> tuple[Tensor, Tensor]:
        if name != "random" or network == 0:
            return first
        return chosen(
            select(name, images, labels, per_class, seeds.derive(seed, "evaluation", network))
        )

    return _Contender(name, lr, epochs, training_set)


def _names(baselines: Sequence[str]) -> tuple[str, ...]:
    names = (baselines,) if isinstance(baselines, str) else tuple(baselines)
    for name in names:
        if name not in BASELINES:
            raise ValueError(f"baselines: got {name!r}; takes any of {', '.join(BASELINES)}")
    return tuple(dict.fromkeys(names))


def _check_data(distilled: DistilledSet, data: Data) -> Split:
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


def _students(
    distilled: DistilledSet,
    data: Data,
    architectures: Sequence[str | Student] | str | Student | None,
) -> dict[str, Student]:
    own = distilled.student_spec.get("name")
    wanted: Iterable[str | Student | None]
    if architectures is None or isinstance(architectures, str | Student):
        wanted = (architectures,)
    else:
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


def _space_of(distilled: DistilledSet, data: Data) -> Callable[[Tensor], Tensor]:
    """Moves images of ``data`` into the space of ``distilled``."""
    ours, theirs = distilled.transform, data.transform
    ours_tensors, theirs_tensors = ours.tensors(), theirs.tensors()
    if (
        ours.kind == theirs.kind
        and ours_tensors.keys() == theirs_tensors.keys()
        and all(
            torch.equal(ours_tensors[key].cpu(), theirs_tensors[key].cpu()) for key in ours_tensors
        )
    ):
        return lambda images: images
    return lambda images: ours.apply(theirs.invert(images.cpu()))


def _warm_up(
    student: Student, contender: _Contender, batch_size: int, families: Augmentation | None
) -> None:
    """One untimed epoch: the first use of a network pays for set-up that no later one does."""
    images, labels = contender.training_set(0)
    options: dict[str, Any] = {"lr": contender.lr, "epochs": 1, "batch_size": batch_size}
    train(student, student.init(0, images.device), images, labels, augment=families, **options)


def _on_last(epochs: int, call: Callable[[], object]) -> Callable[[int, int, Tensor], None]:
    """For ``on_epoch``: ``call`` after each network's last epoch."""

    def told(network: int, done: int, theta: Tensor) -> None:
        if done == epochs:
            call()

    return told


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
