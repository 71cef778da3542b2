"""A preset from raw files to an evaluated set, with a time budget for each stage.

    python examples/cifar10.py --data cifar-10-batches-py --out run
    python examples/cifar10.py --data cifar-10-batches-py --out run \
        --experts 10 --iterations 300 --width 32 --networks 2         # smaller, for a CPU

``--data`` is anything ``iadd_fast.load_data`` reads, for CIFAR-10 the folder of its Python batches
or one of ``train_images.npy``, ``train_labels.npy`` and so on. Trains experts (only as far as the
distillation looks), distils, evaluates, and leaves ``distilled.safetensors``, ``metrics.jsonl``,
``evaluation.json`` and ``budget.json`` in ``--out``. The same call goes on where an earlier one
stopped. The budget is what ``iadd_fast.plan`` predicts, before anything else is done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import iadd_fast
from iadd_fast.devices import resolve_device
from iadd_fast.specs import parse_spec

STAGES = ("experts", "distill", "evaluate")
#: How the stages of a plan begin.
PARTS = {"experts": "experts", "distill": "distillation", "evaluate": "evaluation"}


@dataclass(frozen=True)
class Plan:
    """The preset with what the command line makes smaller."""

    preset: iadd_fast.Preset
    student: str
    experts: dict[str, Any]
    distill: dict[str, Any]
    evaluate: dict[str, Any]


def make_plan(options: argparse.Namespace) -> Plan:
    """Settings of all three stages.

    Raises:
        ValueError: there is no such preset.
    """
    known = iadd_fast.presets()
    if options.preset not in known:
        raise ValueError(f"--preset: got {options.preset!r}; takes one of {', '.join(known)}")
    preset = known[options.preset]
    name, network = parse_spec(preset.student, "student")
    network["width"] = options.width or network["width"]
    student = f"{name}:{','.join(f'{key}={value}' for key, value in network.items())}"

    def changed(values: dict[str, Any], **given: int | None) -> dict[str, Any]:
        return values | {key: value for key, value in given.items() if value is not None}

    return Plan(
        preset,
        student,
        changed(preset.values("experts"), count=options.experts),
        changed(preset.values("distill"), iterations=options.iterations),
        changed(preset.values("evaluate"), networks=options.networks, epochs=options.epochs),
    )


def predict(plan: Plan, data: iadd_fast.Data, device: torch.device) -> dict[str, float]:
    """Seconds of each stage, as ``iadd_fast.plan`` predicts them."""
    found = iadd_fast.plan(
        data,
        student=plan.student,
        images_per_class=plan.preset.images_per_class,
        experts=plan.experts,
        distill=plan.distill,
        evaluate={**plan.evaluate, "baselines": (), "full": False},
        device=device,
    )
    print(found.table())
    seconds = {name: 0.0 for name in STAGES}
    for stage in found.prediction.stages:
        (name,) = (name for name in STAGES if stage.name.startswith(PARTS[name]))
        seconds[name] += stage.seconds.middle
    return seconds


class Budget:
    """Predicted and taken seconds of each stage, kept in ``budget.json`` over all calls."""

    def __init__(self, out: Path, predict: Callable[[], dict[str, float]]) -> None:
        self.path = out / "budget.json"
        held = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.predicted: dict[str, float] = held["predicted"] if held else predict()
        self.taken: dict[str, float] = held.get("taken", dict.fromkeys(STAGES, 0.0))
        print("predicted: " + ", ".join(f"{s} {self.predicted[s] / 60:.1f} min" for s in STAGES))

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Run a stage and add its seconds, also where it is interrupted."""
        began = time.perf_counter()
        try:
            return work()
        finally:
            self.taken[name] += time.perf_counter() - began
            held = {"predicted": self.predicted, "taken": self.taken}
            self.path.write_text(json.dumps(held, indent=1) + "\n")
            print(
                f"{name}: {self.taken[name] / 60:.1f} min, predicted "
                f"{self.predicted[name] / 60:.1f}",
                flush=True,
            )

    def table(self) -> str:
        """Minutes by stage, and their sums."""
        lines = ["stage      predicted min   taken min"]
        rows = {stage: (self.predicted[stage], self.taken[stage]) for stage in STAGES}
        rows["all"] = (sum(self.predicted.values()), sum(self.taken.values()))
        lines += [f"{name:9} {p / 60:14.1f} {t / 60:11.1f}" for name, (p, t) in rows.items()]
        return "\n".join(lines)


def evaluated(
    distilled: iadd_fast.DistilledSet, data: iadd_fast.Data, plan: Plan, options: argparse.Namespace
) -> iadd_fast.Evaluation:
    """The evaluation in ``--out`` if it is of this set and protocol, else a new one."""
    path = options.out / "evaluation.json"
    digest = hashlib.sha256((options.out / "distilled.safetensors").read_bytes()).hexdigest()
    wanted = {"set_sha256": digest, "protocol": plan.evaluate}
    held = json.loads(path.read_text()) if path.is_file() else {}
    if {name: held.get(name) for name in wanted} == wanted:
        return iadd_fast.Evaluation.from_dict(held)
    found = iadd_fast.evaluate(
        distilled, data, baselines=(), full=False, device=options.device, **plan.evaluate
    )
    path.write_text(json.dumps({**found.to_dict(), **wanted}, indent=1) + "\n")
    return found


def main() -> None:
    """All stages."""
    options = arguments()
    plan = make_plan(options)
    preset, device = plan.preset, resolve_device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{preset.name}: {preset.source}")
    data = iadd_fast.load_data(options.data, normalise=preset.data["normalise"])
    budget = Budget(options.out, lambda: predict(plan, data, device))
    experts = options.out / "experts"
    budget.stage(
        "experts",
        lambda: iadd_fast.train_experts(
            data, plan.student, experts, preset=preset.name, device=device, **plan.experts
        ),
    )
    distilled = budget.stage(
        "distill",
        lambda: iadd_fast.distill(
            data,
            experts,
            importance=options.importance,
            out=options.out,
            preset=preset.name,
            device=device,
            **plan.distill,
        ),
    )
    found = budget.stage("evaluate", lambda: evaluated(distilled, data, plan, options))
    print(f"\n{found.table()}\n\n{budget.table()}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything made")
    parser.add_argument("--preset", default="cifar10-ipc1")
    parser.add_argument("--importance", default="adaptive", help="uniform is MTT")
    parser.add_argument("--experts", type=int, help="how many (published: 100)")
    parser.add_argument("--iterations", type=int, help="outer steps (published: 5000)")
    parser.add_argument("--width", type=int, help="of the ConvNet (published: 128)")
    parser.add_argument("--networks", type=int, help="of the evaluation (published: 5)")
    parser.add_argument("--epochs", type=int, help="of the evaluation (published: 1000)")
    parser.add_argument("--device", help="cpu, cuda; default: cuda where there is one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
