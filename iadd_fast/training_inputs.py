"""Checks of what :mod:`iadd_fast.training` is given, and which engine takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.augment import Augmentation
from iadd_fast.fused.network import FusedNetwork, why_not
from iadd_fast.fused.training import Recipe, State, TrainingSet
from iadd_fast.students import Student

ENGINES = ("auto", "fused", "plain")


def recipe_of(
    lr: float,
    epochs: int,
    batch_size: int,
    momentum: float,
    weight_decay: float,
    decay: bool,
    augment: Augmentation | None,
) -> Recipe:
    """The settings of SGD, each checked."""
    arguments.instance("augment", augment, Augmentation | None, "an Augmentation or None")
    return Recipe(
        arguments.number("lr", lr, least=0),
        arguments.whole("epochs", epochs, least=0),
        arguments.whole("batch_size", batch_size),
        arguments.number("momentum", momentum, least=0, below=1),
        arguments.number("weight_decay", weight_decay, least=0),
        arguments.instance("decay", decay, bool, "True or False"),
        augment,
    )


def check_sets(sets: Sequence[TrainingSet], seeds: Sequence[int], networks: int) -> None:
    """Raise unless there are a seed and a set for each network, or one set for all."""
    arguments.instance("seeds", seeds, Sequence, "one seed for each network")
    arguments.instance("sets", sets, Sequence, "pairs of images and labels")
    for seed in seeds:
        arguments.whole("seeds", seed, -arguments.LARGEST)
    for images, labels in sets:
        arguments.tensor("images", images)
        arguments.tensor("labels", labels)
    if len(seeds) != networks:
        raise ValueError(f"seeds: got {len(seeds)}; takes one for each of {networks} networks")
    if len(sets) not in (1, networks):
        raise ValueError(
            f"sets: got {len(sets)}; takes one for each of {networks} networks, or one for all"
        )
    kinds = {f"{_kind(images)} with labels {_kind(labels)}" for images, labels in sets}
    if len(kinds) > 1:
        raise ValueError(f"sets: got {' and '.join(sorted(kinds))}; takes sets of one kind")
    images = sets[0][0]
    if images.ndim == 0 or len(images) == 0:
        raise ValueError("images: got none; training needs at least one")


def checked_states(
    begun: Mapping[int, State] | None, thetas: Tensor, recipe: Recipe
) -> dict[int, State]:
    """``begun``, whose states fit the networks and the recipe."""
    takes = "states by the number of their network"
    begun = arguments.instance("begun", {} if begun is None else begun, Mapping, takes)
    checked = {}
    for network, state in begun.items():
        arguments.whole("begun", network, 0, most=len(thetas) - 1)
        arguments.instance("begun", state, State, takes)
        arguments.whole(f"begun[{network}].epochs", state.epochs, 0, most=recipe.epochs)
        parts = [("theta", state.theta)]
        if recipe.momentum:
            parts.append(("momentum", state.momentum))
        for name, part in parts:
            found = arguments.tensor(f"begun[{network}].{name}", part)
            if found.shape != thetas.shape[1:] or found.dtype != thetas.dtype:
                raise ValueError(
                    f"begun[{network}].{name}: got {arguments.shown(found)}; takes "
                    f"{tuple(thetas.shape[1:])} {thetas.dtype}, as the rows of thetas"
                )
        there = [part.to(thetas.device) for _, part in parts]
        checked[network] = State(state.epochs, *there)
    return checked


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def is_fused(engine: str, student: Student, theta: Tensor, images: Tensor) -> bool:
    """Whether the fused engine trains ``student``; raises where it was asked for and does not."""
    arguments.choice("engine", engine, ENGINES)
    if engine == "plain":
        return False
    reason = _why_not_fused(student, theta, images)
    if engine == "fused" and reason is not None:
        raise ValueError(f"engine: got 'fused'; {reason}")
    return reason is None


def _why_not_fused(student: Student, theta: Tensor, images: Tensor) -> str | None:
    reason = why_not(student)
    if reason is not None:
        return reason
    if theta.dtype not in (torch.float32, torch.float64) or images.dtype != theta.dtype:
        return (
            "the fused passes take parameters and images in float32 or both in float64; got "
            f"{theta.dtype} and {images.dtype}"
        )
    sample = FusedNetwork(student).sample_shape
    if tuple(images.shape[1:]) != sample:
        return f"this student takes images of shape {sample}; got {tuple(images.shape[1:])}"
    if images.device != theta.device and images.device.type != "cpu":
        return f"the parameters are on {theta.device}, the images on {images.device}"
    return None
