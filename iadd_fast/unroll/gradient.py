"""``trajectory_gradient``: the exact meta-gradient of trajectory matching, for any method."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from iadd_fast.augment import Augmentation
from iadd_fast.students import Student
from iadd_fast.unroll.module import module_gradient
from iadd_fast.unroll.problem import Problem, TrajectoryGradient, WeightFunction
from iadd_fast.unroll.reference import reference_gradient

ENGINES = ("auto", "reference", "module")


def trajectory_gradient(
    student: Student,
    theta: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor | float,
    *,
    steps: int,
    weight: Tensor | WeightFunction | None = None,
    normaliser: Literal["start", "weighted"] = "start",
    batch_size: int | None = None,
    augment: Augmentation | str | None = None,
    window: int | None = None,
    seed: int = 0,
    engine: str = "auto",
    compile: bool = False,
) -> TrajectoryGradient:
    """Train a student from ``theta`` on the synthetic set and differentiate where it arrives.

    Inner steps and matching loss (MTT, arXiv 2203.11932; with ``weight`` IADD, 2401.15863)::

        theta_{j+1} = theta_j - lr * grad_theta cross_entropy(theta_j; augment_j(images[batch_j]))
        L = ||weight * (theta_J - target)||^2 / ||v * (theta - target)||^2

    with v = 1 (``normaliser="start"``) or v = weight (``"weighted"``). The gradients are exact,
    through all J steps. First order only: the result carries no graph.

    Args:
        student: the network. theta: its parameters at the start ``[P]``, float32 or float64.
        target: the teacher's later parameters ``[P]``.
        images: synthetic samples ``[N, ...]`` of theta's dtype.
        labels: class indices ``[N]`` (int64) or probabilities ``[N, classes]`` (theta's dtype),
            which get a gradient.
        lr: inner learning rate, a scalar.
        steps: number of inner steps J.
        weight: importance of every parameter ``[P]``, or a function
            ``weight(theta_J, theta, target) -> [P]`` evaluated once theta_J is known and held
            constant (masks by similarity or rank), or None for 1.
        batch_size: samples per inner step, as chunks of random permutations; None for all.
        augment: an :class:`~iadd_fast.augment.Augmentation` or its text; fresh draws every step.
        window: differentiate only the last ``window`` steps, holding theta_{J-window} constant.
        seed: fixes batches and augmentation.
        engine: ``"reference"`` (full backpropagation through the unroll, the definition; memory
            grows with J), ``"module"`` (any student, forward-over-reverse sweep; memory grows by
            one theta a step), ``"auto"`` (the fastest that applies: ``"module"`` today).
        compile: run ``"module"`` under ``torch.compile`` (needs a compiler on the machine; pays
            after a few dozen calls; compiled again for each batch shape).

    Raises:
        ValueError: a shape, dtype, device or range does not fit (the message names the argument),
            or theta equals target, which leaves nothing to match.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: got {engine!r}; takes one of {', '.join(ENGINES)}")
    if engine == "reference" and compile:
        raise ValueError("compile: engine 'reference' has no compiled form (double backward)")
    _check_theta_and_counts(student, theta, target, steps, batch_size, window)
    problem = Problem(
        student=student,
        theta=theta.detach(),
        target=target.detach(),
        # Fresh strides: group_norm's tangent fails on one channel laid out channels-last.
        images=images.detach().clone(memory_format=torch.contiguous_format),
        labels=labels.detach(),
        lr=torch.as_tensor(lr, dtype=theta.dtype, device=theta.device).detach(),
        steps=steps,
        weight=weight.detach() if isinstance(weight, Tensor) else weight,
        normaliser=normaliser,
        batch_size=batch_size,
        augment=Augmentation.parse(augment),
        window=steps if window is None else min(window, steps),
        seed=seed,
    )
    _check_problem(problem)
    if engine == "reference":
        return reference_gradient(problem)
    return module_gradient(problem, compile)


def _check_theta_and_counts(
    student: Student,
    theta: Tensor,
    target: Tensor,
    steps: int,
    batch_size: int | None,
    window: int | None,
) -> None:
    student.check_theta(theta)
    student.check_theta(target, "target")
    if not theta.is_floating_point():
        raise ValueError(f"theta: got {theta.dtype}; takes a floating-point dtype")
    for name, count in (("steps", steps), ("batch_size", batch_size), ("window", window)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"{name}: got {count!r}; takes a whole number of at least 1")


def _check_problem(problem: Problem) -> None:
    theta, images, labels = problem.theta, problem.images, problem.labels
    like_theta = {"target": problem.target, "images": images}
    if isinstance(problem.weight, Tensor):
        problem.student.check_theta(problem.weight, "weight")
        like_theta["weight"] = problem.weight
    if problem.soft:
        like_theta["labels"] = labels
    for name, tensor in like_theta.items():
        if tensor.dtype != theta.dtype:
            raise ValueError(f"{name}: got {tensor.dtype}; theta is {theta.dtype}")
    for name, tensor in {**like_theta, "labels": labels}.items():
        if tensor.device != theta.device:
            raise ValueError(f"{name}: is on {tensor.device}; theta is on {theta.device}")
    if images.ndim < 2 or images.shape[0] == 0:
        raise ValueError(f"images: got shape {tuple(images.shape)}; takes a batch (N, ...)")
    _check_labels(labels, images.shape[0])
    if problem.lr.ndim != 0:
        raise ValueError(f"lr: got shape {tuple(problem.lr.shape)}; takes a scalar")
    if problem.normaliser not in ("start", "weighted"):
        raise ValueError(f"normaliser: got {problem.normaliser!r}; takes 'start' or 'weighted'")
    if torch.equal(theta, problem.target):
        raise ValueError("target: equals theta; there is no movement to match")


def _check_labels(labels: Tensor, count: int) -> None:
    hard = labels.dtype == torch.int64 and labels.shape == (count,)
    soft = labels.is_floating_point() and labels.ndim == 2 and labels.shape[0] == count
    if not (hard or soft):
        raise ValueError(
            f"labels: got {labels.dtype} of shape {tuple(labels.shape)}; takes int64 [{count}] or "
            f"probabilities [{count}, classes]"
        )
