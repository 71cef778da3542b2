"""How a fused unroll shares out memory, the next smaller way, and what to lower when none is left.

The order: fewer activations kept from the inner steps to the sweep, down to none; then fewer
trajectories side by side, down to one; then fewer samples through the network at once. The first
two change no bit of the result, for they change only what is computed again and when; the last
sums the samples' gradients in other parts, which changes their rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from iadd_fast.fused import choices
from iadd_fast.fused.activations import kept_bytes, workspace_bytes
from iadd_fast.fused.network import FusedNetwork, why_not
from iadd_fast.memory import MIB, mib
from iadd_fast.unroll.problem import Problem


@dataclass(frozen=True)
class Plan:
    """How an unroll runs.

    Attributes:
        together: trajectories side by side.
        budget: bytes of activations that each of them may keep.
        samples: most samples that go through the network at once.
    """

    together: int
    budget: int
    samples: int

    @classmethod
    def first(cls, problem: Problem, together: int) -> Plan:
        """The way to begin with, for ``together`` problems like this one."""
        device, budget = problem.theta.device, problem.memory_budget
        total = choices.memory_budget(device) if budget is None else budget * MIB
        samples = choices.samples_at_once(
            FusedNetwork(problem.student), max(sizes_of(problem)), device, working_bytes(problem)
        )
        return cls(together, total // together, samples)

    def lower(self, problem: Problem) -> Plan | None:
        """The next smaller way; None where there is none."""
        kept = self.kept(problem)
        if kept > 0:
            half = replace(self, budget=kept // 2)
            return half if half.kept(problem) > 0 else replace(self, budget=0)
        if self.together > 1:
            return replace(self, together=-(-self.together // 2))
        if self.samples > 1:
            return replace(self, samples=-(-self.samples // 2))
        return None

    def kept(self, problem: Problem) -> int:
        """Bytes of activations that each trajectory keeps under this plan."""
        network, sizes, itemsize = (
            FusedNetwork(problem.student),
            sizes_of(problem),
            working_bytes(problem),
        )
        first = problem.steps - problem.window
        step = kept_from(network, sizes, first, self, itemsize)
        return sum(_step_bytes(network, size, self.samples, itemsize) for size in sizes[step:])

    def change(self, problem: Problem, before: Plan) -> tuple[str, str]:
        """How the unroll goes on under this plan instead of ``before``, and what avoids that."""
        if self.budget != before.budget:
            now, was = (plan.kept(problem) * self.together for plan in (self, before))
            return (
                f"keeping {mib(now)} of activations instead of {mib(was)} and computing the rest "
                "again (the same bits)",
                f"memory_budget={self.budget * self.together // MIB}",
            )
        if self.together != before.together:
            return (
                f"with {self.together} trajectories side by side instead of {before.together} "
                "(the same bits)",
                f"trajectories={self.together}",
            )
        return (
            f"with {self.samples} samples through the network at once instead of "
            f"{before.samples} (the same up to rounding)",
            f"batch_size={self.samples} or a narrower student",
        )


def sizes_of(problem: Problem) -> list[int]:
    """Samples of each inner step."""
    count = len(problem.images)
    return [count if batch is None else len(batch) for batch in problem.batches()]


def working_bytes(problem: Problem) -> int:
    """Bytes of a number that goes through the network."""
    return 2 if problem.precision == "bfloat16" else problem.theta.element_size()


def kept_from(
    network: FusedNetwork, sizes: Sequence[int], first: int, plan: Plan, itemsize: int
) -> int:
    """First step whose activations are kept: the last steps are kept, while they fit."""
    left, step = plan.budget, len(sizes)
    while step > first:
        left -= _step_bytes(network, sizes[step - 1], plan.samples, itemsize)
        if left < 0:
            break
        step -= 1
    return step


def _step_bytes(network: FusedNetwork, size: int, samples: int, itemsize: int) -> int:
    """What keeping a step of ``size`` samples costs: its chunks have buffers of full ones."""
    return kept_bytes(network, -(-size // samples) * samples, itemsize)


def what(problem: Problem, together: int = 1) -> str:
    """What ran out, for messages."""
    many = f" of {together} trajectories" if together > 1 else ""
    return f"unroll{many}, {problem.steps} steps of {max(sizes_of(problem))} samples"


def lower_fused(problem: Problem, plan: Plan) -> list[str]:
    """Settings to lower where even the smallest plan runs out, the largest share first."""
    network = FusedNetwork(problem.student)
    largest, images = max(sizes_of(problem)), problem.images.nbytes
    staged = problem.theta.is_cuda and problem.augment is not None
    inputs = images // len(problem.images) * largest * 2 * (problem.steps if staged else 1)
    work = workspace_bytes(network, plan.samples, working_bytes(problem))
    thetas = problem.theta.nbytes * (problem.window + 8)
    shares = [
        (thetas, _steps(problem, thetas)),
        (inputs, _batch(problem, f"{mib(inputs)} of inputs")),
        (3 * images, _images(problem, 3 * images)),
        (work, f"{_width(problem)} (one sample's pass takes {mib(work)})"),
    ]
    shares.sort(key=lambda share: -share[0])
    total = sum(taken for taken, _ in shares)
    return _possible([text for taken, text in shares if 100 * taken >= total])


def lower_module(problem: Problem, engine: str) -> list[str]:
    """The same for the engines ``"module"`` and ``"reference"``, which have no smaller way."""
    batch = _batch(problem, "one step's graph holds them all")
    steps = _steps(problem, problem.theta.nbytes * (problem.window + 1))
    fused = why_not(problem.student) is None
    if engine == "reference":
        other = "'fused'" if fused else "'module'"
        why = f"which keeps the graphs of all {problem.window} steps"
        return _possible([f"engine: got 'reference', {why}; try {other}", steps, batch])
    first = ["engine: got 'module', which holds a step's whole graph; try 'fused'"]
    return _possible([*(first if fused else []), batch, steps, _width(problem)])


def _possible(advice: list[str]) -> list[str]:
    """The advice without what cannot be lowered, which is empty."""
    return [text for text in advice if text] or ["the size of the images"]


def _steps(problem: Problem, taken: int) -> str:
    if problem.window == 1:
        return ""
    got = f"None (all {problem.steps} steps)" if problem.window == problem.steps else problem.window
    return (
        f"window (or steps): got {got}, {mib(taken)} of parameters, {mib(problem.theta.nbytes)} a "
        f"step; try {max(1, problem.window // 2)}"
    )


def _batch(problem: Problem, why: str) -> str:
    count, size = len(problem.images), problem.batch_size
    if min(size or count, count) == 1:
        return ""
    got = f"None ({count} samples)" if size is None else size
    return f"batch_size: got {got}, {why}; try {max(1, min(size or count, count) // 2)}"


def _images(problem: Problem, taken: int) -> str:
    count = len(problem.images)
    if count == 1:
        return ""
    return f"images_per_class: {count} samples, {mib(taken)} with their gradient; try half of it"


def _width(problem: Problem) -> str:
    width = problem.student.spec.get("width")
    if not isinstance(width, int):
        return f"the student: {problem.student.num_parameters:,} parameters; try a smaller one"
    return f"the student's width: got {width}; try {width // 2}" if width > 1 else ""
