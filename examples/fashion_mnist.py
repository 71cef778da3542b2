"""Does learned importance help on Fashion-MNIST at 1 image per class? A comparison on a CPU.

    python examples/fashion_mnist.py --data FOLDER --out FOLDER

FOLDER holds the four IDX files of Fashion-MNIST, gzipped or not. One ConvNet-3 of a chosen width;
experts on the 54,000 images that are not held out for validation; the image step of uniform
weights (MTT) tuned on validation accuracy (its mean over the second half of the run) at one seed,
the same step for every other policy, so that only uniform was tuned; every policy over several
seeds; fresh networks on the 10,000 test images at the end. Everything goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import iadd_fast

POLICIES = {
    "uniform (MTT)": "uniform",
    "adaptive, ascent (default)": "adaptive",
    "adaptive, descent": "adaptive:direction=descent",
    "adaptive, paper's form": "paper",
    "similarity (parameter pruning)": "similarity",
}


def main() -> None:
    """Experts, tuning, all policies, baselines, table."""
    options = arguments()
    began = time.perf_counter()
    out: Path = options.out
    torch.set_num_threads(options.workers)
    data = load(options)
    iadd_fast.train_experts(
        data,
        f"convnet:width={options.width}",
        out / "experts",
        count=options.experts,
        epochs=2 + options.expert_epochs,
    )
    print(f"experts ready after {minutes(began)}", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        tuning = list(
            pool.map(run, *jobs(options, [("uniform", lr, 0) for lr in options.steps_of_images]))
        )
        for row in tuning:
            print(
                f"uniform, image step {row['lr_images']:g}: validation "
                f"{row['late_validation']:.2f} %",
                flush=True,
            )
        best = max(tuning, key=lambda row: row["late_validation"])["lr_images"]
        print(f"image step {best:g} for all, after {minutes(began)}", flush=True)
        wanted = [
            (policy, best, seed)
            for seed in range(options.seeds)
            for policy in policies(options).values()
        ]
        real = pool.submit(baselines, options)
        rows = list(pool.map(run, *jobs(options, wanted)))
        reference = real.result()
    print(report(rows, reference, options))
    (out / "table.json").write_text(json.dumps({"runs": rows, "baselines": reference}, indent=1))
    print(f"finished after {minutes(began)}")


def policies(options: argparse.Namespace) -> dict[str, str]:
    """Name in the table -> text of the policy."""
    return POLICIES | {text: text for text in options.also}


def jobs(
    options: argparse.Namespace, runs: list[tuple[str, float, int]]
) -> tuple[list[Any], list[str], list[float], list[int]]:
    """Arguments of :func:`run`, one list each."""
    policies, rates, seeds = (list(column) for column in zip(*runs, strict=True))
    return [options] * len(runs), policies, rates, seeds


def run(options: argparse.Namespace, policy: str, lr_images: float, seed: int) -> dict[str, Any]:
    """One distillation and its evaluation, or what an earlier call found for the same."""
    torch.set_num_threads(1)
    folder = options.out / f"{policy.replace(':', '-')}-lr{lr_images:g}-seed{seed}"
    result = folder / "result.json"
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    data = load(options)
    distilled = iadd_fast.distill(
        data,
        options.out / "experts",
        images_per_class=1,
        importance=policy,
        out=folder,
        progress=False,
        iterations=options.iterations,
        steps=options.inner_steps,
        expert_epochs=options.expert_epochs,
        max_start_epoch=2,
        lr_images=lr_images,
        validate_every=50,
        seed=seed,
    )
    measured = iadd_fast.evaluate(
        distilled,
        data,
        networks=options.networks,
        baselines=(),
        full=False,
        seed=seed,
        progress=False,
    )
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [row["validation_accuracy"] for row in log if "validation_accuracy" in row]
    row = {
        "policy": policy,
        "lr_images": lr_images,
        "seed": seed,
        "accuracies": measured.rows[0].accuracies,
        "validation": distilled.summary["validation_accuracy"],
        # The mean over the second half: the best of six would favour steps that only add noise.
        "late_validation": float(np.mean(scores[len(scores) // 2 :])),
        "iteration": distilled.summary["iteration"],
        "skipped": distilled.summary["skipped"],
        "loss": float(np.mean([r["loss"] for r in log[-50:] if r["loss"] is not None])),
        "alpha": log[-1]["lr"],
        "spread": log[-1]["weight_spread"],
        "minutes": distilled.summary["seconds"] / 60,
    }
    result.write_text(json.dumps(row))
    print(
        f"{policy}, seed {seed}, image step {lr_images:g}: test {np.mean(row['accuracies']):.2f} %",
        flush=True,
    )
    return row


def baselines(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Real images of the same size, and the full training set."""
    torch.set_num_threads(1)
    data = load(options)
    result = options.out / "baselines.json"
    if not result.exists():
        some = iadd_fast.DistilledSet.load(
            next(options.out.glob("uniform-*/distilled.safetensors"))
        )
        measured = iadd_fast.evaluate(
            some, data, networks=options.networks, full_epochs=options.full_epochs, progress=False
        )
        result.write_text(json.dumps(measured.to_dict()["rows"]))
    rows: list[dict[str, Any]] = json.loads(result.read_text())
    return [row for row in rows if row["method"] != "iadd"]


def report(
    rows: list[dict[str, Any]], reference: list[dict[str, Any]], options: argparse.Namespace
) -> str:
    """The table in Markdown: accuracies over all seeds and networks."""
    lines = [
        f"| weights | test accuracy % (mean ± std, {options.seeds} seeds x {options.networks} "
        "networks) | per seed | matching loss | alpha | spread of v | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, policy in policies(options).items():
        mine = [row for row in rows if row["policy"] == policy]
        scores = np.array([row["accuracies"] for row in mine])
        per_seed = ", ".join(f"{score:.1f}" for score in scores.mean(1))
        lines.append(
            f"| {name} | {scores.mean():.2f} ± {scores.std():.2f} | {per_seed} "
            f"| {mean(mine, 'loss'):.3f} | {mean(mine, 'alpha'):.4f} | {mean(mine, 'spread'):.2f} "
            f"| {mean(mine, 'minutes'):.1f} |"
        )
    for row in reference:
        lines.append(
            f"| real images: {row['method']} ({row['images']:,}) | {row['mean']:.2f} ± "
            f"{row['std']:.2f} | | | | | |"
        )
    return "\n".join(lines)


def mean(rows: list[dict[str, Any]], name: str) -> float:
    """Mean of one entry over runs."""
    return float(np.mean([row[name] for row in rows]))


def load(options: argparse.Namespace) -> iadd_fast.Data:
    """Fashion-MNIST, 10 % of the training images held out for validation."""
    return iadd_fast.load_data(options.data, name="Fashion-MNIST")


def minutes(began: float) -> str:
    """Minutes since ``began``."""
    return f"{(time.perf_counter() - began) / 60:.1f} min"


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the IDX files")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything made")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--experts", type=int, default=6)
    parser.add_argument("--expert-epochs", type=int, default=1, help="K of the matching")
    parser.add_argument("--inner-steps", type=int, default=10, help="J of the matching")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", type=int, default=3, help="per evaluation")
    parser.add_argument("--full-epochs", type=int, default=4)
    parser.add_argument("--also", nargs="+", default=[], help="further policies, as texts")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument(
        "--image-steps",
        dest="steps_of_images",
        type=float,
        nargs="+",
        default=[10, 30, 100, 300],
        help="image steps to try for uniform weights",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
