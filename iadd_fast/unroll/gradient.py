"""``trajectory_gradient``: the exact meta-gradient of trajectory matching, for any method."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.augment import Augmentation
from iadd_fast.fused.network import why_not
from iadd_fast.fused.precision import PRECISIONS, check_tf32, products_in
from iadd_fast.memory import Done, attempt, nothing_helps
from iadd_fast.students import Student
from iadd_fast.unroll.fused import check_fused, fused_gradients
from iadd_fast.unroll.memory import lower_module, what
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
        OutOfMemory: memory ran out and no smaller way is left; the message names the settings to
            lower. It is a ``torch.OutOfMemoryError`` and a ``MemoryError``.

    Warns:
        UserWarning: memory ran out and ``"fused"`` goes on in a smaller way, which following calls
            take at once: it keeps fewer activations, then runs fewer trajectories side by side (the
            same bits), then fewer samples at once (the same up to rounding).
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
    arguments.instance("student", student, Student, "a Student")
    arguments.choice("engine", engine, ENGINES)
    arguments.instance("compile", compile, bool, "True or False")
    if engine in ("reference", "fused") and compile:
        reason = "double backward" if engine == "reference" else "its kernels are compiled"
        raise ValueError(f"compile: engine {engine!r} has no compiled form ({reason})")
    families = Augmentation.parse(augment)
    images, labels = _samples(images, labels)
    steps = arguments.whole("steps", steps, most=arguments.MOST)
    batch_size = None if batch_size is None else arguments.whole("batch_size", batch_size)
    window = steps if window is None else min(arguments.whole("window", window), steps)
    if memory_budget is not None:
        memory_budget = arguments.whole("memory_budget", memory_budget, least=0)
    problems = []
    for theta, target, weight, seed in zip(thetas, targets, weights, seeds, strict=True):
        student.check_theta(theta)
        student.check_theta(target, "target")
        problem = Problem(
            student=student,
            theta=theta.detach(),
            target=target.detach(),
            images=images,
            labels=labels,
            lr=_rate(lr, theta),
            steps=steps,
            weight=weight.detach() if isinstance(weight, Tensor) else weight,
            normaliser=normaliser,
            batch_size=batch_size,
            augment=families,
            window=window,
            seed=arguments.whole("seed", seed, -arguments.LARGEST),
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
            return [_advised(reference_gradient, problem, engine) for problem in problems]
        run = functools.partial(module_gradient, compiled=compile)
        return [_advised(run, problem, engine) for problem in problems]


def _advised(
    run: Callable[[Problem], TrajectoryGradient], problem: Problem, engine: str
) -> TrajectoryGradient:
    """``run(problem)``; where memory runs out the error says what to lower."""
    outcome = attempt(functools.partial(run, problem), problem.theta.device)
    if isinstance(outcome, Done):
        return outcome.value
    raise nothing_helps(what(problem), outcome, lower_module(problem, engine))


def _engine(engine: str, problem: Problem, compile: bool) -> str:
    if engine == "auto":
        applies = why_not(problem.student) is None and not compile
        applies = applies and problem.theta.dtype in (torch.float32, torch.float64)
        engine = "fused" if applies else "module"
    if engine == "fused":
        check_fused(problem)
    else:
        problem.student.check_samples(problem.theta, problem.images, problem.labels)
    return engine


def _check_precision(precision: str, engine: str, theta: Tensor) -> None:
    arguments.choice("precision", precision, PRECISIONS)
    if precision != "bfloat16":
        check_tf32(precision, theta)
    elif theta.dtype != torch.float32:
        raise ValueError(f"precision: got 'bfloat16'; theta is {theta.dtype}, takes float32")
    elif engine != "fused":
        raise ValueError(f"precision: got 'bfloat16'; engine {engine!r} takes float32 and tf32")


def _samples(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Checked alone and against each other, without their graphs."""
    arguments.tensor("images", images)
    arguments.tensor("labels", labels)
    if images.ndim < 2 or images.shape[0] == 0:
        raise ValueError(f"images: got shape {tuple(images.shape)}; takes a batch (N, ...)")
    _check_labels(labels, images.shape[0])
    # Fresh strides: group_norm's tangent fails on one channel laid out channels-last.
    return images.detach().clone(memory_format=torch.contiguous_format), labels.detach()


def _rate(lr: Tensor | float, theta: Tensor) -> Tensor:
    """``lr`` as a scalar like ``theta``."""
    if not isinstance(lr, Tensor):
        return theta.new_tensor(arguments.number("lr", lr))
    arguments.tensor("lr", lr)
    if lr.ndim != 0 or lr.is_complex() or lr.dtype == torch.bool:
        raise ValueError(f"lr: got {arguments.shown(lr)}; takes a scalar")
    return lr.detach().to(theta.device, theta.dtype)


def _check_problem(problem: Problem) -> None:
    theta, images, labels = problem.theta, problem.images, problem.labels
    like_theta = {"target": problem.target, "images": images}
    if theta.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"theta: got {theta.dtype}; takes float32 or float64")
    if problem.weight is not None and not callable(problem.weight):
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
    arguments.choice("normaliser", problem.normaliser, ("start", "weighted"))
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
