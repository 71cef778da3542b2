"""``trajectory_gradient``: the exact meta-gradient of trajectory matching, for any method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from iadd_fast.augment import Augmentation
from iadd_fast.fused.network import why_not
from iadd_fast.fused.precision import PRECISIONS, check_tf32, products_in
from iadd_fast.students import Student
from iadd_fast.unroll.fused import check_fused, fused_gradients
from iadd_fast.unroll.module import module_gradient
from iadd_fast.unroll.problem import Problem, TrajectoryGradient, WeightFunction
from iadd_fast.unroll.reference import reference_gradient

ENGINES = ("auto", "reference", "module", "fused")


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
    precision: str = "float32",
    memory_budget: int | None = None,
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
            one theta a step), ``"fused"`` (the ConvNet for images with instance norm: the sweep in
            closed form on the fused operators, one CUDA graph on a GPU), ``"auto"``: ``"fused"``
            where it applies, else ``"module"``.
        precision: of the products of convolutions and matrices. ``"float32"`` (also for float64),
            ``"tf32"`` (CUDA only), ``"bfloat16"`` (``"fused"`` only; theta, gradients of the
            parameters and updates stay float32). Holds for every engine, whatever torch's own
            switches say.
        memory_budget: MiB that ``"fused"`` may spend on keeping activations of the last inner steps
            for the sweep instead of computing them again; 0 keeps none. Default: 256 on a CPU, a
            quarter of what is free on a GPU.
        compile: run ``"module"`` under ``torch.compile`` (needs a compiler on the machine; pays
            after a few dozen calls; compiled again for each batch shape).

    Raises:
        ValueError: a shape, dtype, device or range does not fit (the message names the argument),
            the engine does not take the student, or theta equals target, which leaves nothing to
            match.
    """
    (result,) = trajectory_gradients(
        student,
        [theta],
        [target],
        images,
        labels,
        lr,
        steps=steps,
        weights=[weight],
        normaliser=normaliser,
        batch_size=batch_size,
        augment=augment,
        window=window,
        seeds=[seed],
        engine=engine,
        precision=precision,
        memory_budget=memory_budget,
        compile=compile,
    )
    return result


def trajectory_gradients(
    student: Student,
    thetas: Sequence[Tensor],
    targets: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    lr: Tensor | float,
    *,
    steps: int,
    weights: Sequence[Tensor | WeightFunction | None],
    seeds: Sequence[int],
    normaliser: Literal["start", "weighted"] = "start",
    batch_size: int | None = None,
    augment: Augmentation | str | None = None,
    window: int | None = None,
    engine: str = "auto",
    precision: str = "float32",
    memory_budget: int | None = None,
    compile: bool = False,
) -> list[TrajectoryGradient]:
    """:func:`trajectory_gradient` of several segments with one synthetic set.

    On a GPU engine ``"fused"`` runs them side by side, since one of few images cannot fill it; the
    results are those of one call each.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: got {engine!r}; takes one of {', '.join(ENGINES)}")
    if engine in ("reference", "fused") and compile:
        reason = "double backward" if engine == "reference" else "its kernels are compiled"
        raise ValueError(f"compile: engine {engine!r} has no compiled form ({reason})")
    families = Augmentation.parse(augment)
    # Fresh strides: group_norm's tangent fails on one channel laid out channels-last.
    images = images.detach().clone(memory_format=torch.contiguous_format)
    problems = []
    for theta, target, weight, seed in zip(thetas, targets, weights, seeds, strict=True):
        _check_theta_and_counts(student, theta, target, steps, batch_size, window)
        problem = Problem(
            student=student,
            theta=theta.detach(),
            target=target.detach(),
            images=images,
            labels=labels.detach(),
            lr=torch.as_tensor(lr, dtype=theta.dtype, device=theta.device).detach(),
            steps=steps,
            weight=weight.detach() if isinstance(weight, Tensor) else weight,
            normaliser=normaliser,
            batch_size=batch_size,
            augment=families,
            window=steps if window is None else min(window, steps),
            seed=seed,
            precision=precision,
            memory_budget=memory_budget,
        )
        _check_problem(problem)
        problems.append(problem)
    engine = _engine(engine, problems[0], compile)
    _check_precision(precision, engine, problems[0].theta)
    with products_in(precision, problems[0].theta.device):
        if engine == "fused":
            return fused_gradients(problems)
        if engine == "reference":
            return [reference_gradient(problem) for problem in problems]
        return [module_gradient(problem, compile) for problem in problems]


def _engine(engine: str, problem: Problem, compile: bool) -> str:
    if engine == "auto":
        applies = why_not(problem.student) is None and not compile
        applies = applies and problem.theta.dtype in (torch.float32, torch.float64)
        engine = "fused" if applies else "module"
    if engine == "fused":
        check_fused(problem)
    return engine


def _check_precision(precision: str, engine: str, theta: Tensor) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}; takes one of {', '.join(PRECISIONS)}")
    if precision != "bfloat16":
        check_tf32(precision, theta)
    elif theta.dtype != torch.float32:
        raise ValueError(f"precision: got 'bfloat16'; theta is {theta.dtype}, takes float32")
    elif engine != "fused":
        raise ValueError(f"precision: got 'bfloat16'; engine {engine!r} takes float32 and tf32")


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
    budget = problem.memory_budget
    if budget is not None and (not isinstance(budget, int) or budget < 0):
        raise ValueError(f"memory_budget: got {budget!r}; takes a whole number of MiB, at least 0")
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
