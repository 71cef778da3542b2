"""Teachers: networks trained on the real data, one snapshot of their parameters an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from iadd_fast.artifacts import Experts, ExpertStore, MemoryExperts, load_mtt_buffers
from iadd_fast.augment import DSA, Augmentation
from iadd_fast.data import Data
from iadd_fast.devices import resolve_device
from iadd_fast.seeds import derive
from iadd_fast.settings import ExpertSettings
from iadd_fast.students import Student, build, for_data, parse_student
from iadd_fast.training import accuracy, train


def train_experts(
    data: Data,
    student: Student | str | None = None,
    out: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Experts:
    """Train teachers and keep a snapshot of every epoch (MTT's ``buffer.py``).

    Each expert starts from its own seed and sees the training part of ``data`` (the validation part
    is left out, so that a distillation can choose on it). Train only as many epochs as a
    distillation reaches: ``max_start_epoch + expert_epochs``.

    Args:
        data: from :func:`iadd_fast.load_data`.
        student: the network, or its text such as ``"convnet:width=32"``; default the ConvNet of the
            data's shape.
        out: folder for ``manifest.json`` and one ``.safetensors`` per expert; a folder of an
            earlier call with the same settings is continued where it stopped. None keeps the
            snapshots in memory.
        device: default: CUDA where there is one.
        progress: show a bar with the validation accuracy.
        **settings: fields of :class:`~iadd_fast.settings.ExpertSettings`.

    Returns:
        The experts, read lazily from ``out``.

    Raises:
        TypeError, ValueError: an unknown setting or a value out of range; ``out`` holds experts of
            other settings or data.
    """
    options = ExpertSettings.of(**settings)
    student = resolve_student(student, data)
    augment = resolve_augment(options.augment, data)
    where = resolve_device(device)
    store: ExpertStore | None = None
    missing = list(range(options.count))
    if out is not None:
        store = ExpertStore.create(
            Path(out),
            student_spec=student.spec,
            settings={
                **options.to_dict(),
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
    images, labels = data.train.images.to(where), data.train.labels.to(where)
    trajectories: list[Tensor] = []
    total = len(missing) * options.epochs
    with tqdm(total=total, desc="experts", unit="epoch", disable=not progress) as bar:
        for index in missing:
            snapshots, accuracies = _trajectory(
                student, images, labels, data, options, augment, index, where, bar
            )
            if store is None:
                trajectories.append(snapshots)
            else:
                store.add(index, snapshots, {"validation_accuracy": accuracies})
    return MemoryExperts(trajectories) if store is None else store


def _trajectory(
    student: Student,
    images: Tensor,
    labels: Tensor,
    data: Data,
    options: ExpertSettings,
    augment: Augmentation | None,
    index: int,
    device: torch.device,
    bar: Any,
) -> tuple[Tensor, list[float]]:
    held = data.validation.to(device)
    snapshots: list[Tensor] = []
    accuracies: list[float] = []

    def keep(epoch: int, theta: Tensor) -> None:
        # A clone: MTT's detach().cpu() keeps one and the same storage on a CPU.
        snapshots.append(theta.detach().to("cpu", copy=True))
        if len(held) > 0:
            accuracies.append(accuracy(student, theta, held.images, held.labels))
            bar.set_postfix(expert=index, epoch=epoch, accuracy=f"{accuracies[-1]:.1f}%")
        bar.update(int(epoch > 0))

    seed = derive(options.seed, "expert", index)
    train(
        student,
        student.init(derive(seed, "initial"), device),
        images,
        labels,
        lr=options.lr,
        epochs=options.epochs,
        batch_size=options.batch_size,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        decay=options.decay,
        augment=augment,
        seed=seed,
        on_epoch=keep,
    )
    return torch.stack(snapshots), accuracies


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
) -> tuple[Student, Experts]:
    """A student and experts that fit it and the data and reach epoch ``reach``.

    Experts that are not given are trained (into ``folder``); a student that is not given is the
    experts' own.

    Raises:
        ValueError: the experts have other parameters, too few epochs or other training data.
    """
    if experts is None:
        network = resolve_student(student, data)
        return network, train_experts(
            data,
            network,
            folder,
            device=device,
            progress=progress,
            epochs=reach,
            augment=augment,
            seed=seed,
        )
    if isinstance(experts, str | Path):
        path = Path(experts)
        if path.suffix == ".pt" or any(path.glob("replay_buffer_*.pt")):
            experts = load_mtt_buffers(path, resolve_student(student, data))
        else:
            experts = ExpertStore.open(path)
    if student is None and isinstance(experts, ExpertStore):
        network = build(experts.student_spec)
    else:
        network = resolve_student(student, data)
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


def resolve_student(student: Student | str | None, data: Data) -> Student:
    """The student itself, one by its text, or the default for the data's shape."""
    if isinstance(student, Student):
        return student
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
