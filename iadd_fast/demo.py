"""The demo: handwritten digits, one synthetic image a class, and the whole report on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from iadd_fast.artifacts.files import write_json
from iadd_fast.audit import Audit, audit
from iadd_fast.audit.names import names_of
from iadd_fast.data import load_data
from iadd_fast.distillation import distill
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
#: Sets beside the one the report is about, by the folder each goes to.
BESIDE: dict[str, dict[str, Any]] = {
    "uniform": {"importance": "uniform", **DISTILL},
    "similarity": {"importance": "similarity", **DISTILL},
    "gradient": {"method": "gradient", "student": STUDENT, "iterations": 300},
    "noise": {"initial": "noise", **DISTILL},
    "kmeans": {"initial": "kmeans", **DISTILL},
}
AUDIT: dict[str, Any] = {"networks": 5, "epochs": 300, "full_epochs": 50}


def run_demo(out: Path, progress: bool = True) -> Audit:
    """Digits to a report page in ``out``; what is already there is not done again.

    Writes ``experts/``, ``distilled.safetensors``, ``metrics.jsonl``, the sets of other methods in
    ``beside/``, ``evaluation.json``, ``result.json``, ``report.json`` and ``index.html``, and
    prints the table and where the page is.

    Raises:
        ValueError: ``out`` holds a run with other settings.
    """
    # At 8x8 a second thread buys nothing, and where other work shares the cores, threads that wait
    # for each other take many times as long.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(Path(out), progress)
    finally:
        torch.set_num_threads(threads)


def _run(out: Path, progress: bool) -> Audit:
    data = load_data(DATA)
    experts = train_experts(data, STUDENT, out / "experts", progress=progress, **EXPERTS)
    distilled = distill(data, experts, 1, out=out, progress=progress, **DISTILL)
    others = []
    for folder, settings in BESIDE.items():
        teachers = None if settings.get("method") == "gradient" else experts
        target = out / "beside" / folder
        others.append(distill(data, teachers, 1, out=target, progress=progress, **settings))
    measured = audit(
        distilled,
        data,
        beside=dict(zip(names_of(others), others, strict=True)),
        metrics=out / "metrics.jsonl",
        keep=out / "networks",
        progress=progress,
        **AUDIT,
    )
    write_json(out / "evaluation.json", measured.evaluation.to_dict())
    write_json(out / "result.json", result(measured.evaluation))
    page = write_report(
        out,
        distilled,
        audit=measured,
        data=data,
        metrics=out / "metrics.jsonl",
        command=f"iadd-fast demo --out {out}",
        report_command=f"iadd-fast demo --out {out}",
    )
    print(measured.evaluation.table())
    print(f"page: {page}")
    return measured


def result(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracies in percent, training seconds of one network and bytes, by method."""
    rows = {row.method: row for row in evaluation.rows}
    return {
        "accuracy": {name: {"mean": row.mean, "std": row.std} for name, row in rows.items()},
        "seconds": {name: row.seconds for name, row in rows.items()},
        "bytes": {name: row.bytes for name, row in rows.items()},
    }
