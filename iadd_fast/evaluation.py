"""How good a distilled set is: MTT's protocol, beside baselines of the same size and the full data.

The protocol is ``evaluate_synset`` of MTT: fresh networks, SGD with momentum 0.9 and weight decay
5e-4, the learning rate cut to a tenth (and the momentum dropped) half-way, augmentation on every
batch, one test at the end. A distilled set trains with its own learned learning rate.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from iadd_fast import arguments, seeds
from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.folder_lock import exclusive
from iadd_fast.augment import Augmentation
from iadd_fast.baselines import BASELINES, select
from iadd_fast.data import Data
from iadd_fast.devices import resolve_device
from iadd_fast.evaluation_inputs import (
    baseline_names,
    check_beside,
    check_data,
    space_of,
    students_of,
)
from iadd_fast.evaluation_networks import (
    RowInTraining,
    TrainedNetworks,
    check_room,
    trained_or_kept,
)
from iadd_fast.evaluation_rows import Evaluation, EvaluationRow
from iadd_fast.fused.training import State
from iadd_fast.machine import machine
from iadd_fast.students import NAMES, Student
from iadd_fast.training import accuracy, placed, train, train_many

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


@dataclass(frozen=True)
class _Protocol:
    networks: int
    batch_size: int
    families: Augmentation | None
    seed: int
    precision: str
    device: torch.device


def evaluate(
    distilled: DistilledSet,
    data: Data,
    architectures: Sequence[str | Student] | str | Student | None = None,
    *,
    beside: Mapping[str, DistilledSet] | None = None,
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
    keep: str | Path | None = None,
    on_trained: Callable[[TrainedNetworks], None] | None = None,
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
        beside: other distilled sets of the same data and transform, by the method's name in the
            rows; each trains with its own learning rate.
        networks: fresh networks for each method and architecture.
        epochs: for the distilled set and the baselines of its size. full_epochs: for the full data.
        baselines: any of ``"random"``, ``"herding"``, ``"k_center"``.
        full: also train on all training images.
        baseline_lr: learning rate wherever real images are trained on.
        precision: products in training in ``"float32"``, or on a GPU in ``"tf32"``.
        augment: ``"same"`` as in distillation, another augmentation, or None.
        device: default: a GPU where there is one.
        keep: folder for the networks of every finished row; the same call takes them from there.
            One evaluation at a time works in it.
        on_trained: called with the networks of every row.

    Raises:
        ValueError: an argument is out of range or unknown; ``data`` has no test part, or samples of
            another shape or another number of classes than ``distilled``; a set of ``beside`` does
            not fit it, or takes a name of another method; a class has fewer training images than
            the baselines are to choose; ``keep`` has too little room or is in use.
        OSError: ``keep`` cannot be written to.
        KeyboardInterrupt: Ctrl-C or SIGTERM, with ``keep`` after the epoch that is running; the
            same call goes on there.

    Warns:
        UserWarning: the set was distilled from other data (its fingerprint differs); networks
            diverged (they count as 0 %).
    """
    arguments.instance("distilled", distilled, DistilledSet, "a DistilledSet")
    arguments.instance("data", data, Data, "data from load_data")
    for name, flag in (("full", full), ("progress", progress)):
        arguments.instance(name, flag, bool, "True or False")
    networks = arguments.whole("networks", networks, most=arguments.MOST)
    epochs = arguments.whole("epochs", epochs)
    batch_size = arguments.whole("batch_size", batch_size)
    full_epochs = arguments.whole("full_epochs", full_epochs)
    seed = arguments.whole("seed", seed, -arguments.LARGEST)
    baseline_lr = arguments.number("baseline_lr", baseline_lr, above=0)
    arguments.choice("precision", precision, ("float32", "tf32"))
    beside = arguments.instance("beside", {} if beside is None else beside, Mapping, "sets by name")
    folder = None if keep is None else arguments.path("keep", keep)
    if on_trained is not None:
        arguments.instance("on_trained", on_trained, Callable, "a function or None")
    baselines = baseline_names(baselines)
    test = check_data(distilled, data)
    students = students_of(distilled, data, architectures)
    same = isinstance(augment, str) and augment == "same"
    families = Augmentation.parse(distilled.augment if same else augment)
    device = resolve_device(device)

    to_space = space_of(distilled, data)
    test_images, test_labels = placed(to_space(test.images), device), test.labels.to(device)
    contenders = [_distilled_contender(DISTILLED, distilled, epochs, device)]
    for name, other in beside.items():
        check_beside(name, other, distilled, (DISTILLED, FULL, *BASELINES))
        contenders.append(_distilled_contender(name, other, epochs, device))
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
            everything = placed(real[0], device), real[1].to(device)
            contenders.append(_Contender(FULL, baseline_lr, full_epochs, lambda _: everything))

    rows = []
    total = len(contenders) * len(students) * networks
    protocol = _Protocol(networks, batch_size, families, seed, precision, device)
    with (
        nullcontext() if folder is None else exclusive(folder, "evaluate"),
        tqdm(total=total, desc="evaluate", unit="network", disable=not progress) as bar,
    ):
        if folder is not None:
            check_room(folder, list(students.values()), networks, len(contenders))
        for architecture, student in students.items():
            for contender in contenders:
                bar.set_description(f"{contender.method}, {architecture}")
                sets = [contender.training_set(network) for network in range(networks)]
                before = bar.n
                thetas, seconds = _trained(
                    student, architecture, contender, sets, protocol, folder, bar.update
                )
                bar.update(before + networks - bar.n)  # those that were kept have not counted
                results = [accuracy(student, theta, test_images, test_labels) for theta in thetas]
                diverged = int((~thetas.isfinite().all(1)).sum())
                if diverged:
                    warnings.warn(
                        f"{diverged} of {networks} networks of {contender.method!r} on "
                        f"{architecture} diverged, trained with learning rate {contender.lr:.4g}; "
                        "they count as 0 %",
                        UserWarning,
                        stacklevel=2,
                    )
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
                        diverged,
                    )
                )
                if on_trained is not None:
                    initial = _initial(student, architecture, protocol)
                    on_trained(
                        TrainedNetworks(
                            contender.method, architecture, student, thetas, sets, initial
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
        "machine": machine(device),
        "data_name": data.name,
        "data_fingerprint": data.fingerprint,
        "test_images": len(test),
    }
    return Evaluation(rows, settings)


def _trained(
    student: Student,
    architecture: str,
    contender: _Contender,
    sets: list[tuple[Tensor, Tensor]],
    protocol: _Protocol,
    folder: Path | None,
    on_network: Callable[[], object],
) -> tuple[Tensor, float]:
    """Parameters ``[networks, P]`` of one row and the seconds of one network."""
    prefix = (protocol.seed, "evaluation", architecture)
    options: dict[str, Any] = {
        "lr": contender.lr,
        "epochs": contender.epochs,
        "batch_size": protocol.batch_size,
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
        "decay": True,
        "precision": protocol.precision,
    }

    def train_all(row: RowInTraining) -> tuple[Tensor, float]:
        _warm_up(student, sets[0], contender.lr, protocol)
        thetas = _initial(student, architecture, protocol)
        row.look(thetas, contender.epochs)
        started = _clock(protocol.device)

        def after_epoch(network: int, state: State) -> None:
            if state.epochs == contender.epochs:
                on_network()
            row.after_epoch(network, state, contender.epochs)

        with row:
            thetas = train_many(
                student,
                thetas,
                sets,
                seeds=[seeds.derive(*prefix, k, "train") for k in range(protocol.networks)],
                augment=protocol.families,
                on_epoch=after_epoch,
                begun=row.begun,
                on_round=row.after_round,
                **options,
            )
        seconds = row.seconds + _clock(protocol.device) - started - row.spent_keeping
        return thetas, seconds / protocol.networks

    key = {
        **options,
        "prefix": list(prefix),
        "student": student.spec,
        "networks": protocol.networks,
        "augment": None if protocol.families is None else str(protocol.families),
    }
    # The description of a user's own module does not say what it computes.
    described = student.spec.get("name") in NAMES
    name = f"{contender.method} on {architecture}"
    return trained_or_kept(folder if described else None, key, sets, name, train_all)


def _initial(student: Student, architecture: str, protocol: _Protocol) -> Tensor:
    """The first parameters ``[networks, P]``, the same for every method."""
    names = [(protocol.seed, "evaluation", architecture, k) for k in range(protocol.networks)]
    first = [seeds.derive(*name, "init") for name in names]
    return torch.stack([student.init(number, protocol.device) for number in first])


def _distilled_contender(
    name: str, distilled: DistilledSet, epochs: int, device: torch.device
) -> _Contender:
    own = distilled.images.to(device), distilled.labels.to(device)
    return _Contender(name, float(distilled.lr), epochs, lambda _: own)


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


def _warm_up(
    student: Student, training_set: tuple[Tensor, Tensor], lr: float, protocol: _Protocol
) -> None:
    """One untimed step: the first use of a network pays for set-up that no later one does."""
    images, labels = (part[: protocol.batch_size] for part in training_set)
    theta = student.init(0, protocol.device)
    train(student, theta, images, labels, lr=lr, epochs=1, augment=protocol.families)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
