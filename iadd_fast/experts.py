"""Teachers: networks trained on the real data, one snapshot of their parameters an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from iadd_fast import arguments
from iadd_fast.artifacts import Experts, ExpertStore, MemoryExperts, load_mtt_buffers
from iadd_fast.artifacts.expert_store import MANIFEST
from iadd_fast.artifacts.files import check_writable, remove_leftovers
from iadd_fast.artifacts.folder_lock import FolderInUse, exclusive
from iadd_fast.augment import DSA, Augmentation
from iadd_fast.data import Data
from iadd_fast.devices import resolve_device
from iadd_fast.distributed import Ranks
from iadd_fast.preset import Preset, find_preset
from iadd_fast.seeds import derive
from iadd_fast.settings import ExpertSettings
from iadd_fast.students import Student, build, for_data, parse_student
from iadd_fast.training import accuracy, placed, train_many


class ExpertDiverged(RuntimeError):
    """The parameters of an expert in training are not finite any more."""


def train_experts(
    data: Data,
    student: Student | str | None = None,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Experts:
    """Train teachers and keep a snapshot of every epoch (MTT's ``buffer.py``).

    Each expert starts from its own seed and sees the training part of ``data`` (the validation part
    is left out, so that a distillation can choose on it). On a GPU several train side by side
    (``at_once``), on a CPU one after another; an expert is the same and is stored as soon as it is
    finished either way. Train only as many epochs as a distillation reaches: ``max_start_epoch +
    expert_epochs``.

    Where ``torch.distributed`` has been begun (``torchrun`` on the command line) the processes
    divide the experts: each takes one that nobody has from the shared folder ``out`` until none is
    left, so that a fast one does more and what a dead one had begun is done by another. An expert
    does not depend on who trains it.

    Args:
        data: from :func:`iadd_fast.load_data`.
        student: the network, or its text such as ``"convnet:width=32"``; default the ConvNet of the
            data's shape.
        out: folder for ``manifest.json`` and one ``.safetensors`` per expert; a folder of an
            earlier call with the same settings is continued where it stopped. One job at a time
            works in a folder. None keeps the snapshots in memory.
        preset: a name of :func:`iadd_fast.presets`, whose settings hold where none is given here;
            its experts have as many epochs as its distillation reaches.
        device: default: CUDA where there is one.
        progress: show a bar with the validation accuracy.
        **settings: fields of :class:`~iadd_fast.settings.ExpertSettings`.

    Returns:
        The experts, read lazily from ``out``.

    Raises:
        TypeError, ValueError: an unknown setting or preset, or a value out of range; ``out`` holds
            experts of other settings or data, is in use by another run or has too little room; an
            expert does not move.
        ExpertDiverged: an expert's parameters were not finite after an epoch; the message names
            both. Experts that were finished before are kept.
        OSError: ``out`` cannot be written to.

    Warns:
        UserWarning: the data is normalised in another way than the preset says.
    """
    arguments.instance("data", data, Data, "data from load_data")
    arguments.instance("progress", progress, bool, "True or False")
    folder = None if out is None else arguments.path("out", out)
    chosen = find_preset(preset)
    if chosen is not None:
        chosen.warn_unless_normalised(data.transform.kind)
        settings = {**chosen.values("experts"), **settings}
    options = ExpertSettings.of(**settings)
    student = resolve_student(student, data, chosen)
    augment = resolve_augment(options.augment, data)
    where = resolve_device(device)
    how = options.to_dict()
    del how["at_once"]  # no expert depends on those beside it
    if folder is None:
        trajectories: list[Tensor] = []

        def kept(index: int, snapshots: Tensor, accuracies: list[float]) -> None:
            trajectories.append(snapshots)

        indices = list(range(options.count))
        _train(student, data, options, augment, indices, where, progress, kept)
        return MemoryExperts(trajectories)

    ranks = Ranks.current()
    with ExitStack() as stack:
        if ranks.first:
            stack.enter_context(exclusive(folder, "experts"))
            remove_leftovers(folder / MANIFEST)
            # float32; the header is small beside it.
            each = (options.epochs + 1) * student.num_parameters * 4
            there = len(list(folder.glob("expert_*.safetensors")))
            check_writable("out", folder, max(0, options.count - there) * each)
        else:
            ranks.wait()  # until the first one has made the folder
        store = ExpertStore.create(
            folder,
            student_spec=student.spec,
            settings={
                **how,
                "augment": str(augment) if augment else "none",
                "transform": data.transform.kind,
                "images": len(data.train),
            },
            data_fingerprint=data.fingerprint,
            data_name=data.name,
            count=options.count,
            epochs=options.epochs,
        )
        missing = store.missing()
        if ranks.first:
            ranks.wait()

        def train(indices: list[int]) -> None:
            shown = progress and ranks.first
            _train(student, data, options, augment, indices, where, shown, stored)

        def stored(index: int, snapshots: Tensor, accuracies: list[float]) -> None:
            store.add(index, snapshots, {"validation_accuracy": accuracies})

        if ranks.size > 1:
            _share_out(store, ranks, options.at_once if where.type == "cuda" else 1, train)
        elif missing:
            store.remove_leftovers(missing)
            train(missing)
    return store


#: Seconds between two looks at what others have finished.
LOOK = 0.5
#: Experts that a process with a GPU takes from the folder at once, where no setting says it.
TAKEN = 8


def _share_out(
    store: ExpertStore,
    ranks: Ranks,
    at_once: int | None,
    train: Callable[[list[int]], None],
) -> None:
    """Train experts that nobody else is training until all are finished.

    Each is held by a lock of its own in the folder, which the system lets go of when its holder
    dies: then another takes it. A process begins with its own share and goes on with the others'.
    """
    while missing := store.missing():
        fair = -(-len(missing) // ranks.size)
        wanted = min(fair, TAKEN if at_once is None else at_once)
        own = missing[ranks.rank :: ranks.size]
        with ExitStack() as claims:
            taken: list[int] = []
            for index in [*own, *(other for other in missing if other not in own)]:
                if len(taken) == wanted:
                    break
                try:
                    claims.enter_context(
                        exclusive(store.path, f"expert {index}", store.claim_name(index))
                    )
                except FolderInUse:
                    continue
                if index in store.missing():
                    taken.append(index)
            if taken:
                store.remove_leftovers(taken)
                train(sorted(taken))
        if not taken:
            time.sleep(LOOK)
    ranks.wait()
    if ranks.first:
        store.remove_claims()


def _train(
    student: Student,
    data: Data,
    options: ExpertSettings,
    augment: Augmentation | None,
    indices: list[int],
    device: torch.device,
    progress: bool,
    finished: Callable[[int, Tensor, list[float]], None],
) -> None:
    """Train the experts of these numbers, in ascending order; ``finished`` takes each when done."""
    held, held_images = data.validation, placed(data.validation.images, device)
    seeds = [derive(options.seed, "expert", index) for index in indices]
    snapshots: dict[int, list[Tensor]] = {index: [] for index in indices}
    accuracies: dict[int, list[float]] = {index: [] for index in indices}
    total = len(indices) * options.epochs
    with tqdm(total=total, desc="experts", unit="epoch", disable=not progress) as bar:

        def keep(number: int, epoch: int, theta: Tensor) -> None:
            index = indices[number]
            _check_epoch(index, epoch, theta, snapshots[index], options)
            # A clone: MTT's detach().cpu() keeps one and the same storage on a CPU.
            snapshots[index].append(theta.detach().to("cpu", copy=True))
            if len(held) > 0:
                score = accuracy(student, theta, held_images, held.labels)
                accuracies[index].append(score)
                bar.set_postfix(expert=index, epoch=epoch, accuracy=f"{score:.1f}%")
            bar.update(int(epoch > 0))
            if epoch == options.epochs:
                finished(index, torch.stack(snapshots.pop(index)), accuracies.pop(index))

        train_many(
            student,
            torch.stack([student.init(derive(seed, "initial"), device) for seed in seeds]),
            [(placed(data.train.images, device), data.train.labels)],
            seeds=seeds,
            lr=options.lr,
            epochs=options.epochs,
            batch_size=options.batch_size,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            decay=options.decay,
            augment=augment,
            on_epoch=keep,
            at_once=options.at_once,
            precision=options.precision,
        )


def _check_epoch(
    index: int, epoch: int, theta: Tensor, before: list[Tensor], options: ExpertSettings
) -> None:
    """Raise where an expert has diverged, or has not moved in its first epoch."""
    if not bool(theta.isfinite().all()):
        raise ExpertDiverged(
            f"expert {index} diverged in epoch {epoch}: its parameters are not finite; lower lr "
            f"(now {options.lr:g}) or momentum ({options.momentum:g}), or check the scale of the "
            "images (normalise). Experts finished before it are kept"
        )
    if epoch != 1:
        return
    moved, size = (theta.cpu() - before[0]).abs().max(), before[0].abs().max()
    if bool(moved <= torch.finfo(theta.dtype).eps * size):
        raise ValueError(
            f"lr: got {options.lr:g}; expert {index} has not moved by more than the rounding of "
            f"its parameters in its first epoch (by {float(moved):.2g}); raise lr"
        )


def teachers(
    data: Data,
    experts: Experts | str | Path | None,
    student: Student | str | None,
    *,
    reach: int,
    folder: Path | None,
    device: torch.device,
    progress: bool,
    augment: str,
    seed: int,
    preset: Preset | None = None,
) -> tuple[Student, Experts]:
    """A student and experts that fit it and the data and reach epoch ``reach``.

    Experts that are not given are trained (into ``folder``, as ``preset`` says); a student that is
    not given is the experts' own, else the preset's.

    Raises:
        ValueError: the experts have other parameters, too few epochs or other training data.
    """
    if experts is None:
        network = resolve_student(student, data, preset)
        own = {} if preset is None else preset.values("experts")
        own |= {"epochs": reach, "augment": augment, "seed": seed}
        trained = train_experts(data, network, folder, device=device, progress=progress, **own)
        return network, trained
    takes = "experts, a folder of them, or None"
    if not isinstance(experts, ExpertStore | MemoryExperts):
        arguments.instance("experts", experts, str | Path | Experts, takes)
    if isinstance(experts, str | Path):
        path = arguments.path("experts", experts)
        if path.suffix == ".pt" or any(path.glob("replay_buffer_*.pt")):
            experts = load_mtt_buffers(path, resolve_student(student, data, preset))
        else:
            experts = ExpertStore.open(path)
    if student is None and isinstance(experts, ExpertStore):
        network = build(experts.student_spec)
    else:
        network = resolve_student(student, data, preset)
    if len(experts) == 0:
        raise ValueError("experts: none is finished yet; train at least one")
    if experts.num_parameters != network.num_parameters:
        raise ValueError(
            f"experts: have {experts.num_parameters} parameters; the student {network.spec} has "
            f"{network.num_parameters}"
        )
    if experts.epochs < reach:
        raise ValueError(
            f"experts: reach epoch {experts.epochs}; max_start_epoch + expert_epochs is {reach}"
        )
    if isinstance(experts, ExpertStore):
        _check_same_data(experts, data)
    return network, experts


def _check_same_data(experts: ExpertStore, data: Data) -> None:
    if experts.data_fingerprint != data.fingerprint:
        raise ValueError(
            f"experts: were trained on {experts.data_name!r} with fingerprint "
            f"{experts.data_fingerprint[:12]}; the data is {data.name!r}, {data.fingerprint[:12]}"
        )
    transform = experts.settings.get("transform")
    if transform != data.transform.kind:
        raise ValueError(
            f"experts: were trained on images normalised by {transform!r}; the data was loaded "
            f"with normalise={data.transform.kind!r}"
        )


def resolve_student(
    student: Student | str | None, data: Data, preset: Preset | None = None
) -> Student:
    """The student itself, one by its text, the preset's, or the default for the data's shape."""
    if isinstance(student, Student):
        return student
    if student is None and preset is not None:
        student = preset.student
    if student is None:
        return for_data(data.sample_shape, data.num_classes)
    return parse_student(student, data.sample_shape, data.num_classes)


def resolve_augment(text: str, data: Data) -> Augmentation | None:
    """``"auto"`` is all of DSA for images and nothing for series."""
    if text == "auto":
        text = DSA if len(data.sample_shape) == 3 else "none"
    augment = Augmentation.parse(text)
    if augment is not None and len(data.sample_shape) != 3:
        raise ValueError(f"augment: got {text!r}; series of shape {data.sample_shape} take 'none'")
    return augment
