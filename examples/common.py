"""What the examples on small real data share: experts, distillations, baselines, one table.

The image step is tuned for uniform weights (MTT) at each size, on validation accuracy (its mean
over the second half of the run, seed 0), and then used for every policy. The test part is seen by
the final evaluations only. Everything goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

import iadd_fast
from iadd_fast.artifacts.files import read_json, write_json
from iadd_fast.evaluation_networks import TrainedNetworks

POLICIES = {"uniform": "uniform (MTT)", "adaptive": "adaptive (IADD)"}
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Study:
    """What one example does.

    Attributes:
        load: from the path given as ``--data`` to the data.
        student: the network. experts: settings of ``train_experts``.
        distill: settings of ``distill``. sizes: what differs, by samples per class.
        image_steps: those to try, by samples per class.
        seeds: distillations of each policy and size.
        evaluate: settings of ``evaluate``.
    """

    load: Callable[[Path], iadd_fast.Data]
    student: str
    experts: dict[str, Any]
    distill: dict[str, Any]
    sizes: dict[int, dict[str, Any]]
    image_steps: dict[int, list[float]]
    seeds: int
    evaluate: dict[str, Any]


def main(study: Study, text: str) -> None:
    """Experts, tuning, all policies, baselines, table."""
    options = arguments(text)
    data, out, began = options.data, options.out, time.perf_counter()
    torch.set_num_threads(options.workers)
    iadd_fast.train_experts(study.load(data), study.student, out / "experts", **study.experts)
    print(f"experts ready after {minutes(began)}", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, torch.set_num_threads, (1,)) as pool:
        tuning = {
            size: {step: pool.submit(validation, study, data, out, size, step) for step in steps}
            for size, steps in study.image_steps.items()
        }
        runs = []
        for size, tried in tuning.items():
            scores = {step: job.result() for step, job in tried.items()}
            best = max(scores, key=lambda step: scores[step])
            shown = ", ".join(f"{step:g}: {score:.2f} %" for step, score in scores.items())
            print(f"{size} a class: validation by image step {shown}; takes {best:g}", flush=True)
            for seed in range(study.seeds):
                for policy in POLICIES:
                    runs.append(pool.submit(run, study, data, out, size, best, policy, seed))
        real = [
            pool.submit(baselines, study, data, out, size, size == max(tuning)) for size in tuning
        ]
        rows = [job.result() for job in runs]
        rows += [row for job in real for row in job.result()]
    write_json(out / "table.json", rows)
    print(table(rows))
    print(f"finished after {minutes(began)}")


def distil(
    study: Study, data: iadd_fast.Data, folder: Path, size: int, step: float, policy: str, seed: int
) -> iadd_fast.DistilledSet:
    """A set of ``size`` samples a class, or the one that an earlier call left in ``folder``."""
    return iadd_fast.distill(
        data,
        folder.parent / "experts",
        size,
        policy,
        out=folder,
        progress=False,
        lr_images=step,
        seed=seed,
        **{**study.distill, **study.sizes[size]},
    )


def folder_of(out: Path, size: int, step: float, policy: str, seed: int) -> Path:
    """Where a distillation goes."""
    return out / f"{size}-{policy}-step{step:g}-seed{seed}"


def validation(study: Study, source: Path, out: Path, size: int, step: float) -> float:
    """Validation accuracy of uniform weights with this image step.

    The mean over the second half of the run: the best one would favour steps that only add noise.
    """
    folder = folder_of(out, size, step, "uniform", 0)
    distil(study, study.load(source), folder, size, step, "uniform", 0)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [entry["validation_accuracy"] for entry in log if "validation_accuracy" in entry]
    return float(np.mean(scores[len(scores) // 2 :]))


def run(
    study: Study, source: Path, out: Path, size: int, step: float, policy: str, seed: int
) -> dict[str, Any]:
    """One distillation and its evaluation, or what an earlier call found for the same."""
    folder = folder_of(out, size, step, policy, seed)
    result = folder / "result.json"
    if not result.exists():
        data = study.load(source)
        distilled = distil(study, data, folder, size, step, policy, seed)
        (row,) = measured(study, distilled, data, seed=seed, baselines=(), full=False)
        row |= {
            "size": size,
            "method": POLICIES[policy],
            "seed": seed,
            "image_step": step,
            "lr": distilled.lr,
            "minutes": distilled.summary["seconds"] / 60,
        }
        write_json(result, row)
    found: dict[str, Any] = read_json(result)
    return found


def baselines(study: Study, source: Path, out: Path, size: int, full: bool) -> Rows:
    """Real samples of the same size, and (once) all of them."""
    result = out / f"baselines-{size}.json"
    if not result.exists():
        data = study.load(source)
        some = next(out.glob(f"{size}-uniform-*/distilled.safetensors"))
        rows = measured(study, iadd_fast.DistilledSet.load(some), data, full=full)
        write_json(result, [row | {"size": size} for row in rows if row["method"] != "iadd"])
    found: Rows = read_json(result)
    return found


def measured(
    study: Study, distilled: iadd_fast.DistilledSet, data: iadd_fast.Data, **options: Any
) -> Rows:
    """Accuracy and balanced accuracy (the mean over classes) of fresh networks on the test part."""
    assert data.test is not None
    images, labels = data.test.images, data.test.labels
    balanced: dict[str, list[float]] = {}

    def on_trained(trained: TrainedNetworks) -> None:
        balanced[trained.method] = [
            100 * float(balanced_accuracy_score(labels, predictions(trained, theta, images)))
            for theta in trained.thetas
        ]

    evaluation = iadd_fast.evaluate(
        distilled, data, on_trained=on_trained, progress=False, **study.evaluate, **options
    )
    return [
        {
            "method": row.method,
            "samples": row.images,
            "accuracies": row.accuracies,
            "balanced": balanced[row.method],
        }
        for row in evaluation.rows
    ]


@torch.no_grad()
def predictions(trained: TrainedNetworks, theta: Tensor, images: Tensor) -> Tensor:
    """The most probable class of every image."""
    parts = [trained.student.apply(theta, part).argmax(1) for part in images.split(1024)]
    return torch.cat(parts)


def table(rows: Rows) -> str:
    """The rows in Markdown, those of one method and size together."""
    lines = [
        "| samples a class | trained on | accuracy % | balanced accuracy % | networks | per seed "
        "| alpha | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], Rows] = {}
    for row in sorted(rows, key=lambda row: (row["method"] == "full", row["size"])):
        if row["method"] == "full":
            group = "", f"all real samples ({row['samples']:,})"
        else:
            group = str(row["size"]), row["method"] if "seed" in row else f"real: {row['method']}"
        groups.setdefault(group, []).append(row)
    for group, own in groups.items():
        of_runs = ["", "", ""]
        if "seed" in own[0]:
            of_runs = [
                ", ".join(f"{np.mean(row['accuracies']):.1f}" for row in own),
                f"{np.mean([row['lr'] for row in own]):.4f}",
                f"{np.mean([row['minutes'] for row in own]):.1f}",
            ]
        networks = sum(len(row["accuracies"]) for row in own)
        cells = [*group, spread(own, "accuracies"), spread(own, "balanced"), str(networks)]
        lines.append(f"| {' | '.join([*cells, *of_runs])} |")
    return "\n".join(lines)


def spread(rows: Rows, name: str) -> str:
    """Mean and standard deviation over all networks of ``rows``."""
    values = np.concatenate([row[name] for row in rows])
    return f"{values.mean():.2f} ± {values.std():.2f}"


def minutes(began: float) -> str:
    """Minutes since ``began``."""
    return f"{(time.perf_counter() - began) / 60:.1f} min"


def arguments(text: str) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="where the data lies")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything made")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    return parser.parse_args()
