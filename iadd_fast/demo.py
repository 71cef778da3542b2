"""The demo: handwritten digits, one synthetic image a class, beside real images and full data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.files import read_json, write_json
from iadd_fast.data import Data, load_data
from iadd_fast.distillation import distill
from iadd_fast.evaluation import evaluate
from iadd_fast.evaluation_rows import Evaluation
from iadd_fast.experts import train_experts
from iadd_fast.report import write_report

DATA = "digits"
STUDENT = "convnet:width=32"
EXPERTS: dict[str, Any] = {"count": 10, "epochs": 10, "lr": 0.02}
DISTILL: dict[str, Any] = {
    "iterations": 300,
    "steps": 20,
    "expert_epochs": 4,
    "max_start_epoch": 6,
    "lr_images": 10.0,
}
EVALUATION: dict[str, Any] = {"networks": 5, "epochs": 300, "full_epochs": 50}


def run_demo(out: Path, progress: bool = True) -> Evaluation:
    """Digits to a report page in ``out``; what is already there is not done again.

    Writes ``experts/``, ``distilled.safetensors``, ``metrics.jsonl``, ``evaluation.json``,
    ``result.json`` and ``index.html``, and prints the table and where the page is.

    Raises:
        ValueError: ``out`` holds a run with other settings.
    """
    # At 8x8 a second thread buys nothing (97 s against 100 s), and where other work shares the
    # cores, threads that wait for each other take many times as long.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(Path(out), progress)
    finally:
        torch.set_num_threads(threads)


def _run(out: Path, progress: bool) -> Evaluation:
    data = load_data(DATA)
    experts = train_experts(data, STUDENT, out / "experts", progress=progress, **EXPERTS)
    distilled = distill(data, experts, 1, out=out, progress=progress, **DISTILL)
    evaluation = _evaluated(distilled, data, out, progress)
    write_json(out / "result.json", result(evaluation))
    page = write_report(
        out,
        distilled,
        evaluation=evaluation,
        metrics=out / "metrics.jsonl",
        command=f"iadd-fast demo --out {out}",
    )
    print(evaluation.table())
    print(f"page: {page}")
    return evaluation


def result(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracies in percent, training seconds of one network and bytes, by method."""
    rows = {row.method: row for row in evaluation.rows}
    return {
        "accuracy": {name: {"mean": row.mean, "std": row.std} for name, row in rows.items()},
        "seconds": {name: row.seconds for name, row in rows.items()},
        "bytes": {name: row.bytes for name, row in rows.items()},
    }


def _evaluated(distilled: DistilledSet, data: Data, out: Path, progress: bool) -> Evaluation:
    """The evaluation in ``out`` if it is of this set and these settings, else a new one."""
    path = out / "evaluation.json"
    digest = hashlib.sha256((out / "distilled.safetensors").read_bytes()).hexdigest()
    wanted = {"set_sha256": digest, "arguments": EVALUATION}
    if path.is_file():
        try:
            held = read_json(path)
            if {name: held[name] for name in wanted} == wanted:
                return Evaluation.from_dict(held)
        except (ValueError, KeyError, TypeError):
            pass  # not written by this version: measure again
    evaluation = evaluate(distilled, data, progress=progress, **EVALUATION)
    write_json(path, {**evaluation.to_dict(), **wanted})
    return evaluation
