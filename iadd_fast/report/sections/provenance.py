"""Provenance: what the set and the report were made from, and how to make them again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from iadd_fast.artifacts import DistilledSet
from iadd_fast.data import Data
from iadd_fast.versions import versions


def measure(
    distilled: DistilledSet,
    data: Data | None,
    evaluation: Mapping[str, Any],
    audit: Mapping[str, Any],
    *,
    command: str,
    report_command: str,
) -> dict[str, Any]:
    """Everything recorded of the set and of this report.

    ``set_fingerprint`` is the SHA-256 of the set's images and labels (the bytes of both tensors,
    one after the other).

    Args:
        distilled: the set. data: what the report measured on.
        evaluation, audit: the settings of the two.
        command: to make the set again. report_command: to make the report again.
    """
    digest = hashlib.sha256()
    for tensor in (distilled.images, distilled.labels):
        digest.update(tensor.contiguous().numpy().tobytes())
    measured_on = None
    if data is not None:
        measured_on = {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "train": len(data.train),
            "validation": len(data.validation),
            "test": 0 if data.test is None else len(data.test),
            "normalisation": data.transform.kind,
        }
    return {
        "set": {
            "data": distilled.data_name,
            "data_fingerprint": distilled.data_fingerprint,
            "set_fingerprint": digest.hexdigest(),
            "samples": len(distilled),
            "shape": list(distilled.images.shape[1:]),
            "classes": distilled.num_classes,
            "labels": "soft" if distilled.labels.is_floating_point() else "hard",
            "bytes": distilled.nbytes,
            "normalisation": distilled.transform.kind,
            "lr": distilled.lr,
            "augment": distilled.augment,
            "seed": distilled.seed,
        },
        "measured_on": measured_on,
        "same_data": None if data is None else data.fingerprint == distilled.data_fingerprint,
        "summary": plain(distilled.summary),
        "config": plain(distilled.config),
        "student": plain(distilled.student_spec),
        "evaluation": plain(evaluation),
        "audit": plain(audit),
        "set_versions": plain(distilled.versions),
        "report_versions": {**versions(), "numpy": np.__version__},
        "device": evaluation.get("device"),
        "threads": torch.get_num_threads(),
        "command": command or None,
        "report_command": report_command or None,
    }


def plain(value: Any) -> Any:
    """``value`` as strictly valid JSON holds it: no NaN, no infinities, text for what has none."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


#: By bench/reproducibility.py (docs/reproducibility.md).
MEASURED = (
    "On handwritten digits, measured on one processor, that moved the mean accuracy of ten "
    "networks by up to 1.3 points, another seed by up to 1.0: a difference of that size between "
    "two runs says nothing about their settings."
)

_NAMES = {
    "data_fingerprint": "data fingerprint (SHA-256)",
    "set_fingerprint": "set fingerprint (SHA-256)",
    "fingerprint": "fingerprint (SHA-256)",
    "lr": "learned learning rate alpha",
    "augment": "augmentation",
}


def view(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of :func:`measure`."""
    report = {
        **{f"version of {name}": value for name, value in measured["report_versions"].items()},
        "device": measured["device"],
        "processor threads": measured["threads"],
    }
    tables: list[tuple[str, Mapping[str, Any]]] = [
        ("The set", {_NAMES.get(key, key): value for key, value in measured["set"].items()}),
        ("The run", measured["summary"]),
        ("Settings of the distillation", measured["config"]),
        ("The student", measured["student"]),
        ("Versions and machine that made the set", measured["set_versions"]),
        (
            "What the report measured on",
            {_NAMES.get(k, k): v for k, v in (measured["measured_on"] or {}).items()},
        ),
        ("Settings of the evaluation", measured["evaluation"]),
        ("Settings of the audit", measured["audit"]),
        ("What made the report", report),
    ]
    warnings = []
    if measured["same_data"] is False:
        warnings.append(
            "The set was distilled from other data than the report measured on: the fingerprints "
            "differ."
        )
    return {
        "commands": [
            ("To make the set again", measured["command"], "Not recorded."),
            ("To make the report again", measured["report_command"], "Not recorded."),
        ],
        "warnings": warnings,
        "differs": [*_promise(measured), *_machines(measured)],
        "tables": [
            (caption, list(_flat(values)) or [("", "not recorded")]) for caption, values in tables
        ],
    }


def _promise(measured: Mapping[str, Any]) -> list[str]:
    """What is the same when the commands are run again, and what may differ."""
    of_gpu = " On a GPU this is not yet measured." if "cuda" in _kinds(measured) else ""
    return [
        "With the same seed, versions, kind of processor, number of threads and backends, the "
        "commands give the same set and the same numbers, bit for bit; only times differ, with "
        f"what is computed from them.{of_gpu}",
        "Another processor, GPU, number of threads, backend or version of PyTorch adds numbers up "
        f"in another order: rounding of float32, which training enlarges. {MEASURED}",
    ]


def _machines(measured: Mapping[str, Any]) -> list[str]:
    """Where the set was made, and in what the report's machine is another."""
    made, seen = (measured[of].get("machine") for of in ("set_versions", "evaluation"))
    if not isinstance(made, Mapping):
        return ["The set does not record the machine it was made on."]
    there = {**measured["set_versions"], **dict(_flat(made))}
    backends = sorted({value for name, value in there.items() if name.startswith("backends")})
    text = (
        f"The set was made with torch {there.get('torch')} on {there.get('device name')}, "
        f"PyTorch's kernels for {there.get('cpu capability')}, {there.get('threads')} "
        f"{'thread' if made.get('threads') == 1 else 'threads'}, operators in "
        f"{' and '.join(map(str, backends))}"
    )
    if not isinstance(seen, Mapping):
        return [f"{text}."]
    here = {**measured["report_versions"], **dict(_flat(seen))}
    other = [
        f"{name} {value} instead of {there[name]}"
        for name, value in here.items()
        if name in there and value != there[name]
    ]
    return [f"{text}. The report was measured with {', '.join(other) or 'the same'}."]


def _kinds(measured: Mapping[str, Any]) -> set[str]:
    machines = measured["set_versions"].get("machine"), measured["evaluation"].get("machine")
    return {str(found.get("device")) for found in machines if isinstance(found, Mapping)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}, ")
        elif value is None or isinstance(value, str):
            yield name, "none" if value is None else value
        elif isinstance(value, float):
            yield name, f"{value:.6g}"
        elif isinstance(value, int) and not isinstance(value, bool) and "seed" not in key:
            yield name, f"{value:,}"
        else:
            yield name, json.dumps(value, ensure_ascii=False)
