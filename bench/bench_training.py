"""Training networks: images per second of the fused passes, the plain loop and torch.compile.

    python bench/bench_training.py --table      # contenders in turn: the ratios to quote
    python -m pytest bench/bench_training.py -o python_files='bench_*.py' --benchmark-only

``plain`` is PyTorch's autograd and SGD, the definition; ``compiled`` is the same loop with the
network under ``torch.compile``; ``fused`` is what :func:`iadd_fast.training.train` takes;
``together`` (on a GPU) is the same for as many networks at once as fill it. A contender whose first
steps do not agree with the plain loop in float64 has no time. Set-up, compiling and capturing are
over before the clock starts; the data is on the device for all of them. On a shared CPU the rates
by processor time with ``--threads 1`` are those that hold.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
from torch import Tensor

from bench.rows import surroundings
from bench.timing import synchronise
from iadd_fast import students
from iadd_fast.augment import Augmentation
from iadd_fast.fused import choices
from iadd_fast.fused.network import FusedNetwork
from iadd_fast.fused.training import OnEpoch, State
from iadd_fast.students import Student
from iadd_fast.training import train_many

# Of the way that the parameters go, against float64. A ReLU whose input rounds across zero is worth
# up to 4e-4, also in eager PyTorch.
TOLERANCE = 1e-3
CLASSES = 10
IMAGE = (3, 32, 32)
WIDTH = 128


@dataclass(frozen=True)
class Case:
    """One kind of training; a step takes all ``images``."""

    name: str
    images: int
    lr: float
    momentum: float
    weight_decay: float
    steps: int


# The recipes of MTT's buffer.py and evaluate_synset, with DSA.
CASES = {
    case.name: case
    for case in (
        Case("expert, batch 256", 256, 0.01, 0.0, 0.0, 1),
        Case("evaluation, 10 images", 10, 0.01, 0.9, 5e-4, 20),
        Case("evaluation, 100 images", 100, 0.01, 0.9, 5e-4, 2),
    )
}


class Compiled(Student):
    """A student whose network runs under ``torch.compile``."""

    def __init__(self, student: Student) -> None:
        super().__init__(student._factory, student.spec)
        self._apply = torch.compile(super().apply, dynamic=False)

    def apply(self, theta: Tensor, images: Tensor) -> Tensor:
        logits: Tensor = self._apply(theta, images)
        return logits


def network() -> Student:
    """The ConvNet-3 of dataset distillation."""
    return students.convnet(
        channels=IMAGE[0], classes=CLASSES, image_size=IMAGE[1:], width=WIDTH, depth=3
    )


def contenders(device: torch.device) -> tuple[str, ...]:
    """Those that run on a device."""
    together = ("together",) if device.type == "cuda" else ()
    return ("plain", "compiled", "fused", *together)


@dataclass
class Contest:
    """One case on one device: its data, and the truth in float64."""

    case: Case
    device: torch.device

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        images = torch.randn(self.case.images, *IMAGE, generator=draw)
        self.set = images.to(self.device), (torch.arange(len(images)) % CLASSES).to(self.device)
        self.student = network()
        self.compiled = Compiled(self.student)

    @functools.cached_property
    def truth(self) -> tuple[Tensor, Tensor]:
        """Start and end of two steps, in float64."""
        start = self.student.init(0, self.device, torch.float64)
        images, labels = self.set
        ends = self._train(self.student, start[None], (images.double(), labels), 2, "plain")
        return start, ends[0]

    def gate(self, contender: str) -> float:
        """Its error after two steps.

        Raises:
            AssertionError: it is too large.
        """
        start, want = self.truth
        got = self._run(contender, 2)[0].double()
        error = float((got - want).norm() / (want - start).norm())
        assert error <= TOLERANCE, f"{contender} is wrong on {self.case.name}: error {error:.1e}"
        return error

    def rates(self, contender: str) -> tuple[float, float]:
        """Images per second, and per second of processor time, once it is warm and captured."""
        warm = 2 if self.device.type == "cuda" else 1
        last = warm + self.case.steps
        begin, end = (0.0, 0.0), (0.0, 0.0)

        def tell(number: int, state: State) -> None:
            nonlocal begin, end
            if state.epochs in (warm, last):
                synchronise(self.device)
                now = time.perf_counter(), time.process_time()
                begin, end = (now, end) if state.epochs == warm else (begin, now)

        images = len(self._run(contender, last, tell)) * self.case.images * self.case.steps
        return images / (end[0] - begin[0]), images / (end[1] - begin[1])

    def _run(self, contender: str, steps: int, on_epoch: OnEpoch | None = None) -> Tensor:
        student = self.compiled if contender == "compiled" else self.student
        networks = 1
        if contender == "together":
            fused = FusedNetwork(self.student)
            networks = choices.networks_at_once(fused, self.case.images, self.device, 4)
        thetas = torch.stack([student.init(k, self.device) for k in range(networks)])
        engine = "fused" if contender in ("fused", "together") else "plain"
        return self._train(student, thetas, self.set, steps, engine, on_epoch)

    def _train(
        self,
        student: Student,
        thetas: Tensor,
        training: tuple[Tensor, Tensor],
        steps: int,
        engine: str,
        on_epoch: OnEpoch | None = None,
    ) -> Tensor:
        return train_many(
            student,
            thetas,
            [training],
            seeds=range(len(thetas)),
            lr=self.case.lr,
            epochs=steps,
            batch_size=self.case.images,
            momentum=self.case.momentum,
            weight_decay=self.case.weight_decay,
            augment=Augmentation.parse("dsa"),
            on_epoch=on_epoch,
            engine=engine,
        )


@pytest.mark.parametrize("contender", ["plain", "compiled", "fused", "together"])
@pytest.mark.parametrize("kind", CASES)
def test_training(
    benchmark: Any, request: pytest.FixtureRequest, kind: str, contender: str
) -> None:
    """One contender on one case, behind its gate; its rate is in ``extra_info``."""
    options = request.config.option
    device = torch.device(options.bench_device or _default_device())
    if options.bench_threads:
        torch.set_num_threads(options.bench_threads)
    if contender not in contenders(device):
        pytest.skip("one network fills a CPU")
    contest = Contest(CASES[kind], device)
    error = contest.gate(contender)
    rates: list[float] = []
    benchmark.group = kind
    benchmark.pedantic(lambda: rates.append(contest.rates(contender)[0]), rounds=3)
    benchmark.extra_info |= surroundings(device) | {
        "contender": contender,
        "error": error,
        "images_per_second": statistics.median(rates),
    }


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def table(device: torch.device, rounds: int) -> str:
    """Every contender of every case once a round, in turn; medians, spreads and ratios."""
    about = surroundings(device)
    lines = [
        f"{about['device_name']}, {about['threads']} threads, torch {about['torch']}, "
        f"{about['date']}; ConvNet-3 of width {WIDTH}, {IMAGE[1]}x{IMAGE[2]}x{IMAGE[0]}, DSA, "
        f"float32; medians of {rounds} rounds, lowest and highest in brackets",
        "",
        "| case | contender | images a second | it / plain | images a second of processor time "
        "| it / plain | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES.values():
        contest = Contest(case, device)
        errors = {name: contest.gate(name) for name in contenders(device)}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in errors}
        order = list(taken)
        for _ in range(rounds):
            for name in order:
                taken[name].append(contest.rates(name))
            order = order[1:] + order[:1]
        columns = []
        for kind in (0, 1):
            rates = {name: [one[kind] for one in found] for name, found in taken.items()}
            plain = statistics.median(rates["plain"])
            columns.append({name: _cells(found, plain) for name, found in rates.items()})
        for name, error in errors.items():
            cells = " | ".join(column[name] for column in columns)
            lines.append(f"| {case.name} | {name} | {cells} | {error:.0e} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def _cells(rates: list[float], plain: float) -> str:
    middle = statistics.median(rates)
    return f"{middle:,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | {middle / plain:.2f}x"


def main(given: Sequence[str] | None = None) -> None:
    """The table on stdout, its rows on stderr as they come."""
    parser = argparse.ArgumentParser(description="Images per second of training.")
    parser.add_argument("--table", action="store_true", required=True, help="print the table")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(given)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(table(torch.device(options.device or _default_device()), options.rounds))


if __name__ == "__main__":
    main()
