"""What a distillation's checkpoint has to be before a run goes on from it: anybody can make one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from iadd_fast import arguments

#: The tensors of classes or probabilities; a policy's own may have any name.
LABELS = ("synthetic.labels", "good.synthetic.labels", "best.labels")


def check_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    own: Mapping[str, Tensor],
    classes: int,
    iterations: int,
) -> None:
    """Raise ``ValueError`` unless a run whose state is like ``own`` can go on from a checkpoint.

    Args:
        folder: of the run, for the message.
        tensors, metadata: of the checkpoint.
        own: the run's state at its start, by the names in the checkpoint.
        classes: of the data. iterations: of the run.
    """
    try:
        _check_numbers(metadata, iterations)
        good = any(name.startswith("good.") for name in tensors)
        for prefix in ("", "good.") if good else ("",):
            for name, wanted in own.items():
                _check_like(prefix + name, tensors.get(prefix + name), wanted)
        if metadata["best"]:
            _check_best(tensors, metadata["best"], own, iterations)
        for name, value in tensors.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise ValueError(f"{name} holds values that are not finite")
            is_class = name in LABELS and not value.is_floating_point()
            if is_class and (int(value.min()) < 0 or int(value.max()) >= classes):
                raise ValueError(f"{name} holds others than 0 to {classes - 1}")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"out: the checkpoint in {folder} is of another run or damaged: {error}; remove it, or "
            "give another folder"
        ) from None


def config_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a checkpoint's metadata; none where it holds something else by that name."""
    config = metadata.get("config")
    return config if isinstance(config, dict) else {}


def _check_numbers(metadata: Mapping[str, Any], iterations: int) -> None:
    arguments.whole("iteration", metadata.get("iteration"), 0, most=iterations)
    arguments.whole("skipped", metadata.get("skipped"), 0, most=iterations)
    arguments.whole("skips_in_a_row", metadata.get("skips_in_a_row"), 0, most=iterations)
    arguments.number("seconds", metadata.get("seconds"), least=0)
    arguments.instance("best", metadata.get("best"), dict, "a JSON object")


def _check_best(
    tensors: Mapping[str, Tensor], best: Mapping[str, Any], own: Mapping[str, Tensor], most: int
) -> None:
    arguments.whole("best: iteration", best.get("iteration"), 0, most=most)
    score = best.get("validation_accuracy")
    if score is not None:
        arguments.number("best: validation_accuracy", score, least=0, most=100)
    images = own["synthetic.images"]
    _check_like("best.images", tensors.get("best.images"), images)
    labels, lr = tensors.get("best.labels"), tensors.get("best.lr")
    if labels is None or len(labels) != len(images) or labels.ndim > 2:
        raise ValueError("best.labels are not one for each image")
    if lr is None or lr.numel() != 1 or not float(lr) > 0:
        raise ValueError("best.lr is no learning rate")


def _check_like(name: str, found: Tensor | None, wanted: Tensor) -> None:
    if found is None:
        raise ValueError(f"it lacks {name}")
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise ValueError(f"{name} is {arguments.shown(found)}; takes {arguments.shown(wanted)}")
