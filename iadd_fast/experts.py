"""Teachers: networks trained on the real data, one snapshot of their parameters an epoch."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.artifacts import Experts, ExpertStore, MemoryExperts, load_mtt_buffers
from iadd_fast.artifacts.expert_store import MANIFEST, VALIDATION
from iadd_fast.artifacts.files import check_writable, digest, remove_leftovers
from iadd_fast.artifacts.folder_lock import exclusive
from iadd_fast.augment import DSA, Augmentation
from iadd_fast.data import Data
from iadd_fast.devices import resolve_device
from iadd_fast.distributed import Ranks
from iadd_fast.expert_training import TAKEN, ExpertTraining, Trajectory, share_out
from iadd_fast.preset import Preset, find_preset
from iadd_fast.settings import ExpertSettings
from iadd_fast.students import Student, build, for_data, parse_student


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
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the epoch that is running; the same call on
            ``out`` goes on there.
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
        done: list[Tensor] = []

        def collected(trajectory: Trajectory) -> None:
            done.append(torch.stack(trajectory.snapshots))

        training = ExpertTraining(student, data, options, augment, where, progress, None, collected)
        training.train(range(options.count))
        return MemoryExperts(done)

    ranks = Ranks.current()
    with ExitStack() as stack:
        if ranks.first:
            stack.enter_context(exclusive(folder, "experts"))
            remove_leftovers(folder / MANIFEST)
            # float32; the header is small beside it.
            each = (options.epochs + 1) * student.num_parameters * 4
            left = max(0, options.count - len(list(folder.glob("expert_*.safetensors"))))
            beside = 1 if where.type == "cpu" else options.at_once or TAKEN
            # The experts, and of those in training what is kept, that before it and the next.
            check_writable("out", folder, (left + 3 * min(left, beside)) * each)
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
                VALIDATION: validation_fingerprint(data),
            },
            data_fingerprint=data.fingerprint,
            data_name=data.name,
            count=options.count,
            epochs=options.epochs,
        )
        if ranks.first:
            store.remove_unfinished()
            ranks.wait()

        def stored(trajectory: Trajectory) -> None:
            snapshots = torch.stack(trajectory.snapshots)
            store.add(trajectory.index, snapshots, {"validation_accuracy": trajectory.accuracies})

        shown = progress and ranks.first
        training = ExpertTraining(student, data, options, augment, where, shown, store, stored)
        share_out(store, ranks, options.at_once if where.type == "cuda" else 1, training.train)
    return store


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
        ValueError: the experts have other parameters, too few epochs or other training data; one
            is missing between others.
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
    if isinstance(experts, ExpertStore) and max(experts.finished()) >= len(experts):
        missing = ", ".join(map(str, experts.missing()[:10]))
        raise ValueError(
            f"experts: {experts.path} lacks expert {missing} before others; finish them "
            "(train_experts with the same settings goes on)"
        )
    dtype, wanted = experts.snapshot(0, 0).dtype, data.train.images.dtype
    if dtype != wanted:
        raise ValueError(f"experts: hold {dtype}; the data's images are {wanted}")
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
    held = experts.settings.get(VALIDATION)
    if held is not None and held != validation_fingerprint(data):
        raise ValueError(
            "experts: were trained with other images held out for validation than the data's; load "
            "it with the same seed and validation_fraction, or train experts on this split"
        )
    transform = experts.settings.get("transform")
    if transform != data.transform.kind:
        raise ValueError(
            f"experts: were trained on images normalised by {transform!r}; the data was loaded "
            f"with normalise={data.transform.kind!r}"
        )


def validation_fingerprint(data: Data) -> str:
    """Says which images are held out for validation.

    By their places and labels: the pixels have gone through a transform, whose rounding depends on
    the number of threads.
    """
    held = f"{data.split} {digest([data.validation.labels])}"
    return hashlib.sha256(held.encode()).hexdigest()[:16]


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
