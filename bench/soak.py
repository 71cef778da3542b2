"""The demo's loop and the calls around it, thousands of times: what is left behind each time.

    python bench/soak.py                         # every scenario, 4,000 iterations of the loop
    python bench/soak.py --iterations 20000 --only loop --json soak.json

Resident memory, open descriptors, threads, tensors and Python objects are counted at forty points
after a warm-up. A line is fitted through each; the memory's is given with two standard errors.
Exits with 1 where memory grows by more than 1 MB, tensors by more than 1 or Python objects by more
than 200 per 1,000 iterations beyond those errors, or where a descriptor or a thread is left.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

import iadd_fast
from iadd_fast import ops
from iadd_fast.demo import DATA, DISTILL, EXPERTS, STUDENT

POINTS, WARM_UP = 40, 0.2
#: Most growth per 1,000 iterations.
MOST = {"megabytes": 1.0, "tensors": 1.0, "objects": 200.0}
#: May not grow at all.
HANDLES = ("descriptors", "threads")


@dataclass(frozen=True)
class Sample:
    """What the process holds after ``iteration`` iterations."""

    iteration: int
    megabytes: float
    descriptors: int
    threads: int
    tensors: int
    objects: int


def sample(iteration: int) -> Sample:
    """Counted after a garbage collection; memory, descriptors and threads by the kernel."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    held = gc.get_objects()
    return Sample(
        iteration,
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
        sum(issubclass(type(one), Tensor) for one in held),
        len(held),
    )


@dataclass
class Watch:
    """Takes the samples of a scenario that calls :meth:`tick` once an iteration.

    Inside ``with``: what is there before is set aside (``gc.freeze``), so that tensors and objects
    are those that came since, and counting them is quick.
    """

    iterations: int
    samples: list[Sample] = field(default_factory=list)
    done: int = 0

    def __enter__(self) -> Self:
        gc.collect()
        gc.freeze()
        return self

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()

    def tick(self) -> bool:
        """False: as ``should_stop`` it lets the run go on."""
        self.done += 1
        first = int(self.iterations * WARM_UP)
        if self.done > first and (self.done - first) % max(1, self.iterations // POINTS) == 0:
            self.samples.append(sample(self.done))
        return False


@dataclass(frozen=True)
class Growth:
    """Per 1,000 iterations, with two standard errors of the fitted line."""

    rate: float
    error: float


def growth(samples: list[Sample], name: str) -> Growth:
    """The least-squares line of one count over the iterations."""
    x = np.array([one.iteration for one in samples], dtype=float)
    y = np.array([getattr(one, name) for one in samples], dtype=float)
    x -= x.mean()
    spread = float((x**2).sum())
    slope = float((x * y).sum()) / spread
    rest = y - y.mean() - slope * x
    error = (float((rest**2).sum()) / max(1, len(x) - 2) / spread) ** 0.5
    return Growth(1000 * slope, 2000 * error)


def leaks(samples: list[Sample]) -> list[str]:
    """What grew by more than it may, in words."""
    found = []
    for name, most in MOST.items():
        grown = growth(samples, name)
        if grown.rate - grown.error > most:
            found.append(f"{name}: {grown.rate:+.2f} ± {grown.error:.2f} per 1,000, at most {most}")
    for name in HANDLES:
        # The least of each half: TensorBoard opens its file for a moment now and then.
        counts = [getattr(one, name) for one in samples]
        middle = len(counts) // 2
        first, last = min(counts[:middle]), min(counts[middle:])
        if last > first:
            found.append(f"{name}: {first} in the first half, {last} in the second")
    return found


class Soak:
    """Data, experts and a scratch folder for the scenarios."""

    def __init__(self, scratch: Path, **experts: Any) -> None:
        self.scratch = scratch
        self.data = iadd_fast.load_data(DATA)
        self.experts = iadd_fast.train_experts(
            self.data, STUDENT, scratch / "experts", progress=False, **{**EXPERTS, **experts}
        )

    def loop(self, watch: Watch, engine: str) -> None:
        """One run of the demo's settings: outer steps, validations, checkpoints, metrics."""
        iadd_fast.distill(
            self.data,
            self.experts,
            out=self.scratch / f"loop-{engine}",
            progress=False,
            should_stop=watch.tick,
            **{
                **DISTILL,
                "engine": engine,
                "iterations": watch.iterations,
                "validate_every": max(8, watch.iterations // 100),
                "validation_networks": 1,
                "validation_epochs": 20,
                "checkpoint_every": 10,
            },
        )

    def module(self, watch: Watch) -> None:
        """The same loop by the engine for any network."""
        self.loop(watch, "module")

    def fused(self, watch: Watch) -> None:
        """The demo's own engine."""
        self.loop(watch, "fused")

    def calls(self, watch: Watch) -> None:
        """``distill`` begun anew every time, in a folder and without one, by every policy."""
        folder = self.scratch / "calls"
        few: dict[str, Any] = {
            "iterations": 1,
            "steps": 2,
            "expert_epochs": 1,
            "max_start_epoch": 1,
        }
        few |= {"validation_networks": 1, "validation_epochs": 1}
        policies = itertools.cycle(["adaptive", "uniform", "similarity", "ranked", "prune"])
        for number in range(watch.iterations):
            out = folder if number % 2 else None
            importance = next(policies)
            iadd_fast.distill(
                self.data, self.experts, 1, importance, out=out, progress=False, seed=number, **few
            )
            shutil.rmtree(folder, ignore_errors=True)
            watch.tick()

    def sets(self, watch: Watch) -> None:
        """A set written, read, exported and read back."""
        few: dict[str, Any] = {
            "iterations": 1,
            "steps": 2,
            "validation_networks": 1,
            "validation_epochs": 1,
        }
        made = iadd_fast.distill(self.data, self.experts, progress=False, **few)
        file, folder = self.scratch / "set.safetensors", self.scratch / "mtt"
        for _ in range(watch.iterations):
            made.save(file)
            read = iadd_fast.DistilledSet.load(file)
            read.to_mtt(folder)
            shutil.rmtree(folder)
            self.experts.snapshot(0, 1, torch.device("cpu"))
            watch.tick()

    def gradients(self, watch: Watch) -> None:
        """``trajectory_gradient`` by every engine, with other sizes each time."""
        draw = torch.Generator().manual_seed(0)
        texts = ("convnet:width=8,depth=1", "convnet:width=16,depth=2", "mlp:width=16")
        students = [iadd_fast.students.parse_student(text, (1, 8, 8), 10) for text in texts]
        for number in range(watch.iterations):
            student = students[number % 3]
            fused = number % 3 < 2 and number % 4 < 2
            engine = "fused" if fused else ("module", "reference")[number % 2]
            theta = student.init(number)
            images = torch.randn(10 * (1 + number % 4), 1, 8, 8, generator=draw)
            iadd_fast.trajectory_gradient(
                student,
                theta,
                theta + 0.01 * torch.randn(theta.shape, generator=draw),
                images,
                torch.arange(len(images)) % 10,
                0.01,
                steps=1 + number % 5,
                batch_size=(None, 3, 7)[number % 3],
                augment=("none", "dsa")[number % 2],
                engine=engine,
                seed=number,
            )
            watch.tick()

    def operators(self, watch: Watch) -> None:
        """Every operator with both derivatives, on sizes that grow and shrink."""
        draw = torch.Generator().manual_seed(0)
        for number in range(watch.iterations):
            samples, channels, side = 1 + number % 7, 3 + number % 30, 4 + number % 13
            x = torch.randn(samples, channels, side, side, generator=draw, requires_grad=True)
            weight = torch.randn(5 + number % 20, channels, 3, 3, generator=draw)
            augmented = ops.diff_augment(x, ("color", "scale", "flip"), number)
            p = ops.norm_relu_pool(ops.conv3x3(augmented, weight.requires_grad_(True)))
            loss = ops.softmax_cross_entropy(p.flatten(1), torch.zeros(samples, dtype=torch.int64))
            loss = loss + ops.param_distance(x.flatten(), x.detach().flatten() + 1, x.flatten() * 2)
            (first,) = torch.autograd.grad(loss, x, create_graph=True)
            first.square().sum().backward()
            watch.tick()


#: Scenario -> its share of the iterations.
SCENARIOS: dict[str, tuple[Callable[[Soak, Watch], None], float]] = {
    "fused": (Soak.fused, 1.0),
    "module": (Soak.module, 0.25),
    "calls": (Soak.calls, 0.25),
    "sets": (Soak.sets, 1.0),
    "gradients": (Soak.gradients, 1.0),
    "operators": (Soak.operators, 1.0),
}


def run(soak: Soak, name: str, iterations: int) -> dict[str, Any]:
    """One scenario: its samples, growth and leaks."""
    began = time.perf_counter()
    with Watch(iterations) as watch:
        SCENARIOS[name][0](soak, watch)
    samples = watch.samples
    return {
        "scenario": name,
        "iterations": watch.done,
        "seconds": round(time.perf_counter() - began, 1),
        "growth": {count: asdict(growth(samples, count)) for count in MOST},
        "leaks": leaks(samples),
        "samples": [asdict(one) for one in samples],
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    first, last = row["samples"][0], row["samples"][-1]
    grown = {count: Growth(**value) for count, value in row["growth"].items()}
    memory = f"{grown['megabytes'].rate:+.2f} ± {grown['megabytes'].error:.2f}"
    cells = [row["scenario"], f"{row['iterations']:,}", f"{row['seconds']:.0f}"]
    cells += [f"{first['megabytes']:.0f}", f"{last['megabytes']:.0f}", memory]
    cells += [f"{first[name]} → {last[name]}" for name in (*HANDLES, "tensors", "objects")]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="soak", description="Looks for what runs leave behind.")
    parser.add_argument("--iterations", type=int, default=4000, help="of the loop")
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="some of the scenarios")
    parser.add_argument("--json", type=Path, help="every sample goes here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        soak = Soak(Path(scratch))
        heads = ("scenario", "iterations", "seconds", "first MB", "last MB", "MB per 1,000")
        print(f"| {' | '.join((*heads, *HANDLES, 'tensors', 'objects'))} |")
        print("|---" * 10 + "|", flush=True)
        for name in options.only or SCENARIOS:
            rows.append(run(soak, name, max(POINTS, int(options.iterations * SCENARIOS[name][1]))))
            print(line(rows[-1]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        for leak in row["leaks"]:
            print(f"LEAK in {row['scenario']}: {leak}")
    return int(any(row["leaks"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
