"""What ``iadd-fast plan`` predicts against what then happens, for a handful of small jobs.

    python bench/plan_check.py [--jobs digits 28x28 32x32] [--threads N]

Each job is planned; then its stages run, each in a fresh process, which says the seconds of its
stage (reading the data is not in them), the largest resident set of the whole process and the bytes
it left on disk. All but the digits are made-up 8-bit images, since neither time nor memory looks at
values.
Distillation is one stage here, outer steps and validations together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

import iadd_fast
from iadd_fast.artifacts.files import write_json
from iadd_fast.comparison.memory import STATUS
from iadd_fast.planning.prediction import EVALUATION, EXPERTS, OUTER, VALIDATIONS
from iadd_fast.planning.writing import MIB, duration

STAGES = {"experts": (EXPERTS,), "distill": (OUTER, VALIDATIONS), "evaluate": (EVALUATION,)}


@dataclass(frozen=True)
class Job:
    """Settings of one job on noise, or on ``source``."""

    student: str
    experts: dict[str, Any]
    distill: dict[str, Any]
    evaluate: dict[str, Any]
    images_per_class: int = 1
    samples: int = 0
    shape: tuple[int, ...] = ()
    source: str = ""
    common: dict[str, Any] = field(default_factory=lambda: {"device": "cpu", "progress": False})

    def data(self) -> iadd_fast.Data:
        """Read, as the commands read it."""
        if self.source:
            return iadd_fast.load_data(self.source)
        draw = np.random.default_rng(0)
        pixels = draw.integers(0, 128, (self.samples, *self.shape), dtype=np.uint8)
        labels = np.arange(self.samples) % 10
        # A bright row that says the class, without which distillation would diverge.
        pixels[np.arange(self.samples), :, 2 * labels] += 100
        return iadd_fast.load_data(pixels, labels, name="rows")


JOBS = {
    "digits": Job(  # as `make demo` has them
        "convnet:width=32",
        {"count": 10, "epochs": 10, "lr": 0.02},
        {"iterations": 300, "steps": 20, "expert_epochs": 4, "max_start_epoch": 6},
        {"networks": 5, "epochs": 300, "full_epochs": 50},
        source="digits",
    ),
    "28x28": Job(
        "convnet:width=32",
        {"count": 2, "epochs": 2},
        {"iterations": 100, "steps": 10, "expert_epochs": 1, "max_start_epoch": 1},
        {"networks": 2, "epochs": 200, "full_epochs": 1},
        samples=12_000,
        shape=(1, 28, 28),
    ),
    "32x32": Job(
        "convnet:width=64",
        {"count": 1, "epochs": 2},
        {"iterations": 20, "steps": 10, "expert_epochs": 1, "max_start_epoch": 1,
         "validate_every": 10, "validation_epochs": 10},
        {"networks": 2, "epochs": 20, "full_epochs": 1},
        images_per_class=10,
        samples=10_000,
        shape=(3, 32, 32),
    ),
}  # fmt: skip


def run_stage(job: Job, stage: str, out: Path) -> dict[str, float]:
    """Seconds of a stage, the peak of this process and the bytes that the stage left."""
    data = job.data()
    before = _bytes(out)
    began = time.perf_counter()
    if stage == "experts":
        iadd_fast.train_experts(data, job.student, out / "experts", **job.experts, **job.common)
    elif stage == "distill":
        iadd_fast.distill(
            data, out / "experts", job.images_per_class, out=out, **job.distill, **job.common
        )
    else:
        distilled = iadd_fast.DistilledSet.load(out / "distilled.safetensors")
        found = iadd_fast.evaluate(distilled, data, **job.evaluate, **job.common)
        write_json(out / "evaluation.json", found.to_dict())
    seconds = time.perf_counter() - began
    (peak,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "seconds": seconds,
        "memory": int(peak.split()[1]) * 1024,
        "disk": _bytes(out) - before,
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check(name: str, threads: int) -> None:
    """Plan a job, do it, print both."""
    job = JOBS[name]
    print(f"\n{name}", flush=True)
    began = time.perf_counter()
    plan = iadd_fast.plan(
        job.data(), student=job.student, images_per_class=job.images_per_class,
        experts=job.experts, distill=job.distill, evaluate=job.evaluate, **job.common,
    )  # fmt: skip
    print(f"planned in {duration(time.perf_counter() - began)}")
    print(
        "| stage | predicted (range) | taken | predicted MiB | peak MiB | predicted bytes | bytes |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for stage, names in STAGES.items():
            command = [sys.executable, __file__, "--threads", str(threads)]
            command += ["--stage", stage, "--job", json.dumps(asdict(job)), "--out", folder]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            taken = json.loads(told.splitlines()[-1])
            parts = [plan.prediction[part] for part in names]
            seconds = sum((part.seconds for part in parts[1:]), parts[0].seconds)
            print(
                f"| {stage} | {duration(seconds.middle)} ({duration(seconds.low)} to "
                f"{duration(seconds.high)}) | {duration(taken['seconds'])} | "
                f"{max(part.memory for part in parts) / MIB:.0f} | {taken['memory'] / MIB:.0f} | "
                f"{sum(part.disk for part in parts):,} | {taken['disk']:,} |",
                flush=True,
            )


def main() -> None:
    """The command line; ``--stage`` is for the fresh processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.stage:
        print(json.dumps(run_stage(Job(**options.job), options.stage, options.out)))
        return
    for name in options.jobs:
        check(name, options.threads)


if __name__ == "__main__":
    main()
