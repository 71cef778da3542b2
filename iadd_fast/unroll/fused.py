"""Engine ``"fused"``: the exact reverse sweep of the ConvNet family on the fused passes.

The sweep is that of engine ``"module"``; ``<lam, g_j>`` comes for nothing as the derivative of the
step's loss along ``lam``. A batch goes through the network in chunks small enough for the cache,
because its samples meet in the sums of the parameters' gradients only. So the memory of a step does
not grow with the batch either, and what a memory budget leaves is spent on keeping the activations
of the last steps, which then need not be computed again.

Everything lives in buffers that one :class:`FusedUnroll` allocates for its shapes, so that the same
code is captured in a CUDA graph: inputs are copied in, results are copied out.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from iadd_fast.fused.activations import Activations
from iadd_fast.fused.graphs import Replayed
from iadd_fast.fused.network import FusedNetwork, Vectors
from iadd_fast.fused.passes import Passes
from iadd_fast.fused.training import TESTING, TRAINING, UNROLLS
from iadd_fast.memory import Done, attempt, going_on, nothing_helps
from iadd_fast.ops import param_distance_gradients
from iadd_fast.ops.backends import OPERATORS, backend_of
from iadd_fast.students import Student
from iadd_fast.unroll.fused_inputs import StepInputs
from iadd_fast.unroll.memory import Plan, kept_from, lower_fused, what
from iadd_fast.unroll.problem import Problem, TrajectoryGradient

#: Where a student's ``compiled`` holds the plans of all shapes.
_PLANS = "fused plans"


@dataclass(frozen=True)
class Shape:
    """What the buffers and the captured graph of an unroll depend on."""

    device: torch.device
    dtype: torch.dtype
    working: torch.dtype
    images: int
    classes: int | None
    batch_size: int | None
    steps: int
    window: int
    weight: str
    normaliser: Literal["start", "weighted"]
    memory_budget: int | None
    backends: tuple[str, ...]

    @classmethod
    def of(cls, problem: Problem) -> Shape:
        """The shape of ``problem``."""
        theta = problem.theta
        return cls(
            device=theta.device,
            dtype=theta.dtype,
            working=torch.bfloat16 if problem.precision == "bfloat16" else theta.dtype,
            images=problem.images.shape[0],
            classes=problem.labels.shape[1] if problem.soft else None,
            batch_size=problem.batch_size,
            steps=problem.steps,
            window=problem.window,
            weight="function" if callable(problem.weight) else type(problem.weight).__name__,
            normaliser=problem.normaliser,
            memory_budget=problem.memory_budget,
            backends=tuple(backend_of(operator, theta) for operator in OPERATORS),
        )


class FusedUnroll:
    """Buffers and arithmetic of one trajectory's unroll, for one :class:`Shape`."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.shape = shape = Shape.of(problem)
        self.network = FusedNetwork(problem.student)
        count = self.network.num_parameters
        theta = problem.theta
        self.first = shape.steps - shape.window
        self.start, self.target = torch.empty_like(theta), torch.empty_like(theta)
        self.weight = None if problem.weight is None else torch.empty_like(theta)
        self.lr = theta.new_empty(())
        self.inputs = StepInputs(problem, shape.working)
        # theta_first .. theta_J; earlier ones are overwritten as the student moves on.
        self.thetas = theta.new_empty(shape.window + 1, count)
        # Zeros stay where no pass writes: the biases ahead of a norm.
        self.gradient, self.part = theta.new_zeros(count), theta.new_zeros(count)
        self.lam = torch.empty_like(theta)
        self.loss, self.d_lr = theta.new_empty(()), theta.new_empty(())
        self.d_weight = None if self.weight is None else torch.empty_like(theta)
        working = torch.empty(0, dtype=shape.working, device=shape.device)
        narrow = shape.working != shape.dtype
        self._theta_working = working.new_empty(count) if narrow else None
        self._lam_working = working.new_empty(count) if narrow else None
        self.samples = plan.samples
        self.passes = Passes(self.network, self.samples, working)
        self.kept_from = kept_from(
            self.network, self.inputs.sizes, self.first, plan, shape.working.itemsize
        )
        self.kept: dict[tuple[int, int], Activations] = {}
        self._workspace = self.passes.activations(self.samples)

    def _chunks(self, step: int) -> list[tuple[int, int]]:
        size = self.inputs.sizes[step]
        return [(a, min(a + self.samples, size)) for a in range(0, size, self.samples)]

    def load(self, problem: Problem) -> None:
        """Copy a problem of this shape in."""
        self.start.copy_(problem.theta)
        self.target.copy_(problem.target)
        self.lr.copy_(problem.lr)
        if isinstance(problem.weight, Tensor):
            self.set_weight(problem.weight)
        self.inputs.load(problem)

    def set_weight(self, weight: Tensor | None) -> None:
        """Copy the distance's weight in."""
        assert self.weight is not None and weight is not None
        self.weight.copy_(weight)

    def run(self) -> None:
        """Everything between :meth:`load` and :meth:`result`."""
        self.train()
        self.back()

    def back(self) -> None:
        """Distance and sweep."""
        self.match()
        self.sweep()

    def train(self) -> None:
        """The inner steps: theta_J, keeping what the sweep needs."""
        current = self.thetas[0]
        current.copy_(self.start)
        for step in range(self.shape.steps):
            theta = self._vectors(current, self._theta_working)
            images, labels = self.inputs.of(step)
            for number, (begin, end) in enumerate(self._chunks(step)):
                at = self._activations(step, begin, end)
                share = self.passes.share(end - begin, len(images))
                chunk = images[begin:end], labels[begin:end], share
                into = self.gradient if number == 0 else self.part
                self.passes.forward(theta, chunk[0], at)
                self.passes.backward(theta, *chunk, at, self.network.vectors(into))
                if number > 0:
                    self.gradient += self.part
                # The first z is cheaper to make again (27 inputs an output) than to keep.
                at.z[0] = None
            following = current
            if step >= self.first:
                following = self.thetas[step - self.first + 1]
            torch.addcmul(current, self.gradient, self.lr, value=-1, out=following)
            current = following

    def match(self) -> None:
        """The distance, and its gradients for theta_J and the weight."""
        loss, lam, d_weight = param_distance_gradients(
            self.thetas[-1], self.start, self.target, self.weight, self.shape.normaliser
        )
        self.loss.copy_(loss)
        self.lam.copy_(lam)
        if self.d_weight is not None and d_weight is not None:
            self.d_weight.copy_(d_weight)

    def sweep(self) -> None:
        """Back through the steps of the window: gradients for images, labels and lr."""
        self.inputs.clear()
        self.d_lr.zero_()
        for step in reversed(range(self.first, self.shape.steps)):
            theta = self._vectors(self.thetas[step - self.first], self._theta_working)
            direction = self._vectors(self.lam, self._lam_working)
            images, labels = self.inputs.of(step)
            for number, (begin, end) in enumerate(self._chunks(step)):
                kept = step >= self.kept_from
                at = self.kept[step, begin] if kept else self._activations(step, begin, end)
                share = self.passes.share(end - begin, len(images))
                chunk = images[begin:end], labels[begin:end], share
                if kept:
                    self.passes.first_convolution(theta, chunk[0], at)
                else:
                    self.passes.forward(theta, chunk[0], at)
                    self.passes.backward(theta, *chunk, at, None)
                into = self.gradient if number == 0 else self.part
                # Nothing comes before the first step that a change of its theta would move.
                change = None if step == self.first else self.network.vectors(into)
                tangents = self.passes.tangent(theta, direction, *chunk, at, change)
                self.d_lr -= tangents.loss
                self.inputs.collect(step, begin, end, tangents.images, tangents.labels)
                if number > 0 and change is not None:
                    self.gradient += self.part
                if kept and not self.passes.static:
                    del self.kept[step, begin]
            self.inputs.pull_back(step, self.lr)
            if step > self.first:
                self.lam.addcmul_(self.gradient, self.lr, value=-1)

    def result(self) -> TrajectoryGradient:
        """Copies of the results, which the next run overwrites."""
        d_images, d_labels = self.inputs.results(self.first)
        return TrajectoryGradient(
            loss=self.loss.clone(),
            images=d_images,
            labels=d_labels,
            lr=self.d_lr.clone(),
            weight=None if self.d_weight is None else self.d_weight.clone(),
            theta=self.thetas[-1].clone(),
        )

    def _vectors(self, flat: Tensor, working: Tensor | None) -> Vectors:
        return self.network.vectors(flat if working is None else working.copy_(flat))

    def _activations(self, step: int, begin: int, end: int) -> Activations:
        """Where a chunk's activations go: buffers of its own if it is kept."""
        if step < self.kept_from:
            return self._workspace.first(end - begin)
        if not self.passes.static or (step, begin) not in self.kept:
            self.kept[step, begin] = self.passes.activations(self.samples).first(end - begin)
        return self.kept[step, begin]


class FusedUnrolls:
    """Several unrolls of one student and shape, side by side where one cannot fill the device.

    Args:
        problems: as many as run side by side.
        plan: how; default: :meth:`Plan.first`.
    """

    def __init__(self, problems: Sequence[Problem], plan: Plan | None = None) -> None:
        self.shape = Shape.of(problems[0])
        self.plan = plan or Plan.first(problems[0], len(problems))
        self.lock = threading.Lock()
        self.unrolls = [FusedUnroll(problem, self.plan) for problem in problems]
        device = self.shape.device
        # A weight that depends on theta_J is a function of the caller's: between two graphs.
        self.forth = Replayed([u.train for u in self.unrolls], device, "the inner steps")
        self.back = Replayed([u.back for u in self.unrolls], device, "the sweep", self.forth)
        self.whole = Replayed([u.run for u in self.unrolls], device, "the unroll")

    def gradients(self, problems: Sequence[Problem]) -> list[TrajectoryGradient]:
        """Loss and gradients of problems of these shapes, one for each unroll."""
        with self.lock:
            for unroll, problem in zip(self.unrolls, problems, strict=True):
                unroll.load(problem)
            if self.shape.weight == "function":
                self.forth()
                for unroll, problem in zip(self.unrolls, problems, strict=True):
                    unroll.set_weight(problem.final_weight(unroll.thetas[-1]))
                self.back()
            else:
                self.whole()
            return [unroll.result() for unroll in self.unrolls]


@torch.no_grad()
def fused_gradients(problems: Sequence[Problem]) -> list[TrajectoryGradient]:
    """Loss and gradients of problems of one student and shape.

    Buffers and graphs stay with the student for the next call of the same shape. On a CPU one
    trajectory fills the cores, and they go one after another through the same buffers. Where memory
    runs out, the next smaller :class:`~iadd_fast.unroll.memory.Plan` goes on with what is left to
    do, and stays with the student for the following calls until :func:`release`.

    Raises:
        OutOfMemory: the smallest plan runs out as well; names the settings to lower.

    Warns:
        UserWarning: at each change of the plan, with its reason.
    """
    first, student = problems[0], problems[0].student
    plans: dict[tuple[Shape, int], Plan] = student.compiled.setdefault(_PLANS, {})
    key = Shape.of(first), len(problems)
    if key not in plans:
        # Once: what is free on a GPU is less as soon as the buffers are there.
        plans[key] = Plan.first(first, len(problems) if first.theta.is_cuda else 1)
    plan = plans[key]
    results: list[TrajectoryGradient] = []
    while len(results) < len(problems):
        outcome = attempt(
            functools.partial(_next_group, problems[len(results) :], plan),
            first.theta.device,
            functools.partial(student.compiled.pop, UNROLLS, None),
        )
        if isinstance(outcome, Done):
            results += outcome.value
            continue
        smaller = plan.lower(first)
        if smaller is None:
            raise nothing_helps(what(first, plan.together), outcome, lower_fused(first, plan))
        going_on(what(first, plan.together), outcome, *smaller.change(first, plan))
        plan = plans[key] = smaller
    return results


def _next_group(problems: Sequence[Problem], plan: Plan) -> list[TrajectoryGradient]:
    """The results of as many problems as run at once; a group that is not full is filled up."""
    group = list(problems[: plan.together])
    full = group + [group[-1]] * (plan.together - len(group))
    return _unrolls_of(full, plan).gradients(full)[: len(group)]


def _unrolls_of(problems: Sequence[Problem], plan: Plan) -> FusedUnrolls:
    # One entry: the buffers of a shape that is no longer used are let go.
    compiled = problems[0].student.compiled
    cached = compiled.get(UNROLLS)
    if cached is None or (cached.shape, cached.plan) != (Shape.of(problems[0]), plan):
        compiled.pop(UNROLLS, None)
        cached = None
        cached = compiled[UNROLLS] = FusedUnrolls(problems, plan)
    unrolls: FusedUnrolls = cached
    return unrolls


def release(student: Student) -> None:
    """Let go of the buffers, graphs and plans that engine ``"fused"`` keeps with a student.

    Those of training and testing too: what a distillation had to do with little memory is no rule
    for what comes after it.
    """
    for name in (UNROLLS, _PLANS, TRAINING, TESTING):
        student.compiled.pop(name, None)


def check_fused(problem: Problem) -> None:
    """Raise ``ValueError`` unless the fused engine takes ``problem``."""
    network = FusedNetwork(problem.student)
    if problem.theta.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"theta: got {problem.theta.dtype}; engine 'fused' takes float32, float64")
    shape = tuple(problem.images.shape[1:])
    if shape != network.sample_shape:
        raise ValueError(
            f"images: got samples of shape {shape}; this student takes {network.sample_shape}"
        )
    if problem.soft and problem.labels.shape[1] != network.classes:
        raise ValueError(
            f"labels: got {problem.labels.shape[1]} classes; this student has {network.classes}"
        )
    if not problem.soft:
        # The operators index with labels unchecked.
        least, largest = int(problem.labels.min()), int(problem.labels.max())
        if least < 0 or largest >= network.classes:
            raise ValueError(
                f"labels: got values from {least} to {largest}; this student takes 0 to "
                f"{network.classes - 1}"
            )
