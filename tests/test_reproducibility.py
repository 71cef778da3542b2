"""One seed fixes everything on one machine: fresh processes, compared bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from threadpoolctl import threadpool_limits

from iadd_fast.artifacts.files import load_tensors
from iadd_fast.synthetic import _centres

# Three: two numbers have the same sum in either order.
THREADS = 3
WORK = f"""
import torch
torch.set_num_threads({THREADS})
import iadd_fast
from iadd_fast.audit import audit
from iadd_fast.report import write_report
from sklearn.datasets import load_digits

digits, student = load_digits(n_class=3), "convnet:width=8"
data = iadd_fast.load_data(digits.images.astype("float32") / 16, digits.target)
few = {{"progress": False, "seed": 3}}
experts = iadd_fast.train_experts(data, student, "experts", count=2, epochs=2, **few)
run = {{"steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "validation_epochs": 5, **few}}
distilled = iadd_fast.distill(
    data, experts, 1, out="run", initial="kmeans", iterations=3, validate_every=2, **run
)
gradient = iadd_fast.distill(
    data, None, 1, out="gradient", method="gradient", student=student, iterations=1,
    image_updates=2, validation_epochs=5, **few
)
measured = audit(
    distilled, data, beside={{"gradient": gradient}}, metrics="run/metrics.jsonl",
    networks=2, epochs=3, full_epochs=1, **few
)
write_report("report", distilled, audit=measured, metrics="run/metrics.jsonl", data=data)
"""
# What is timed, and what is computed from that.
TIMED = {"seconds", "distil_seconds", "time_share", "break_even", "Time and storage"}


def untimed(value: Any) -> Any:
    """``value`` without what is timed, at any depth."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in TIMED}
    return [untimed(entry) for entry in value] if isinstance(value, list) else value


def contents(path: Path) -> Any:
    """Of one of our files: its numbers without the timed ones, tensors as their bytes."""
    if path.suffix == ".safetensors":
        tensors, metadata = load_tensors(path)
        stored = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
        return stored, untimed(metadata)
    text = path.read_text()
    parts = text.splitlines() if path.suffix == ".jsonl" else [text]
    return [untimed(json.loads(part)) for part in parts]


def test_fresh_processes_give_the_same_bits(tmp_path: Path) -> None:
    """Breaks when a result depends on the hash seed, the folder, the clock or a race of threads.

    Experts, both methods' sets, metrics, and every number of the report that was not timed.
    """
    folders = [tmp_path / "one", tmp_path / "elsewhere" / "two"]
    running = []
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        environment = {"PYTHONHASHSEED": str(number), "OMP_WAIT_POLICY": "passive"}
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", WORK],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": str(THREADS), **environment},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    one, two = (
        {
            str(path.relative_to(folder)): contents(path)
            for path in sorted(folder.rglob("*"))
            if path.suffix in (".safetensors", ".json", ".jsonl")
        }
        for folder in folders
    )
    assert {"run/distilled.safetensors", "run/metrics.jsonl", "report/report.json"} <= one.keys()
    assert one.keys() == two.keys()
    for name in one:
        assert one[name] == two[name], name
    (_, metadata), (_, again) = one["run/distilled.safetensors"], two["run/distilled.safetensors"]
    made = metadata["versions"]["machine"]
    assert made == again["versions"]["machine"] and made["threads"] == THREADS


def test_centres_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when k-means adds up a centre in the order in which its threads finish."""
    monkeypatch.setenv(
        "OMP_NUM_THREADS", "4"
    )  # else scikit-learn takes no more than there are cores
    images = torch.randn(6000, 3, 4, 4, generator=torch.manual_seed(0), dtype=torch.float64)
    found = []
    for threads in (1, 4, 4):
        with threadpool_limits(threads):
            found.append(_centres(images, 5, seed=3))
    assert all(centres.equal(found[0]) for centres in found)
