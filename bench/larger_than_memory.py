"""Data larger than the memory that may be taken: load, train, distil; anonymous memory beside it.

    python bench/larger_than_memory.py                    # 3 GB of raw images in a temporary folder
    python bench/larger_than_memory.py --gigabytes 40 --folder /scratch --out larger.json

Makes a synthetic data set of uint8 images as ``images.npy`` in pieces, then runs in a process of
its own: ``load_data(cache=...)`` twice (written, then mapped), some batches of one expert, a test,
some iterations of distillation, an evaluation. Memory is ``RssAnon`` of /proc/self/status, sampled
every two milliseconds: what the process has of its own, without the pages of files, which the
system drops when it needs them. With ``--limit`` the process also gets an RLIMIT_DATA of the
mapping plus so many MiB, beyond which allocating fails: the kernel's word instead of samples.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIDE, CLASSES = 32, 10
SAMPLE = 3 * SIDE * SIDE
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of raw images")
    parser.add_argument("--folder", type=Path, help="on a local disk, with five times the room")
    parser.add_argument("--batches", type=int, default=50, help="of 256 images for the expert")
    parser.add_argument("--iterations", type=int, default=5, help="of the distillation")
    parser.add_argument("--limit", type=int, help="MiB beside the mapping, as RLIMIT_DATA")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        print(json.dumps(work(given)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder, count = Path(name), int(given.gigabytes * 1e9) // SAMPLE
        if shutil.disk_usage(folder).free < 5.5 * count * SAMPLE:
            sys.exit(f"--folder: {folder} has not five times {given.gigabytes} GB free")
        make(folder, count)
        options = [f"--{key}={getattr(given, key)}" for key in ("batches", "iterations")]
        options += [] if given.limit is None else [f"--limit={given.limit}"]
        done = subprocess.run(
            [sys.executable, __file__, f"--worker={folder}", *options],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB // 4)},
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f"the worker ended with {done.returncode}")
        result = json.loads(done.stdout.splitlines()[-1])
    print(table(result))
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def make(folder: Path, count: int) -> None:
    """Noise on one pattern a class, so that there is something to learn."""
    draw = np.random.default_rng(0)
    labels = np.arange(count) % CLASSES
    patterns = draw.integers(0, 128, (CLASSES, 3, SIDE, SIDE), dtype=np.uint8)
    np.save(folder / "labels.npy", labels)
    with (folder / "images.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, SIDE, SIDE)}
        np.lib.format.write_array_header_1_0(file, header)
        for begin in range(0, count, 4096):
            known = labels[begin : begin + 4096]
            noise = draw.integers(0, 128, (len(known), 3, SIDE, SIDE), dtype=np.uint8)
            file.write((patterns[known] + noise).data)


def anonymous() -> int:
    """KiB of the process that are of no file."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split("RssAnon:")[1].split()[0])


class Stages:
    """Runs stages and keeps, for each, seconds and the most anonymous memory over the start's."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._peak = 0
        self.before = anonymous()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, anonymous())
            time.sleep(0.002)

    def __call__(self, name: str, function: Callable[[], Any]) -> Any:
        self._peak, began = anonymous(), time.perf_counter()
        result = function()
        seconds = time.perf_counter() - began
        peak = max(self._peak, anonymous()) - self.before
        print(f"{name}: {seconds:.1f} s, {peak / 1024:.0f} MiB", file=sys.stderr, flush=True)
        self.rows.append({"stage": name, "seconds": seconds, "anonymous_mib": peak / 1024})
        return result


def work(given: argparse.Namespace) -> dict[str, Any]:
    import torch

    from iadd_fast import distill, evaluate, load_data, students
    from iadd_fast.artifacts import MemoryExperts
    from iadd_fast.training import accuracy, train

    folder: Path = given.worker
    raw = (folder / "images.npy").stat().st_size
    if given.limit is not None:
        limit_data(4 * raw, given.limit)
    stages = Stages()

    def load() -> Any:
        return load_data(
            folder / "images.npy", folder / "labels.npy", cache=folder / "cache",
            validation_fraction=0.001,
            test_fraction=0.01,
        )  # fmt: skip

    stages("load, writing the cache", load)
    data = stages("load again, checking it", load)
    student = students.convnet(
        channels=3, classes=CLASSES, image_size=(SIDE, SIDE), width=32, depth=3
    )
    # A stride over the whole set, so that its pages are read all over.
    images, labels = data.train.images, data.train.labels
    stride = max(1, len(images) // (256 * given.batches))
    first = student.init(0)
    chosen = images[::stride][: 256 * given.batches], labels[::stride][: 256 * given.batches]
    theta = stages(
        f"one expert, {len(chosen[0]) // 256} batches of 256",
        lambda: train(student, first, *chosen, lr=0.01, epochs=1),
    )
    tested = data.test.images[:10_000], data.test.labels[:10_000]
    score = stages("testing on 10,000", lambda: accuracy(student, theta, *tested))
    experts = MemoryExperts([torch.stack([first, theta])])
    made = stages(
        f"distillation, {given.iterations} iterations",
        lambda: distill(
            data, experts, 1, student=student, iterations=given.iterations, expert_epochs=1,
            max_start_epoch=0, steps=5, validation_epochs=20, progress=False, device="cpu",
        ),
    )  # fmt: skip
    stages(
        "evaluation beside random images",
        lambda: evaluate(
            made,
            data,
            networks=1,
            epochs=20,
            baselines=["random"],
            full=False,
            device="cpu",
            progress=False,
        ),
    )
    return {
        "raw_mib": raw / MIB,
        "mapped_mib": data.train.images.untyped_storage().nbytes() / MIB,
        "images": len(data.train) + len(data.validation) + len(data.test),
        "before_mib": stages.before / 1024,
        "expert_accuracy": score,
        "limit_mib": given.limit,
        "stages": stages.rows,
    }


def limit_data(mapped: int, beside: int) -> None:
    """Private mappings count as data whether they are written to or not: theirs is allowed."""
    import resource

    status = Path("/proc/self/status").read_text(encoding="utf-8")
    held = 1024 * int(status.split("VmData:")[1].split()[0])
    allowed = held + mapped + beside * MIB
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['images']:,} images, {result['raw_mib']:,.0f} MiB raw, "
        f"{result['mapped_mib']:,.0f} MiB as float32 in the cache; before loading the process had "
        f"{result['before_mib']:,.0f} MiB of anonymous memory",
        "",
        "| stage | seconds | most anonymous memory beyond that, MiB |",
        "|---|---|---|",
    ]
    for row in result["stages"]:
        lines.append(f"| {row['stage']} | {row['seconds']:.1f} | {row['anonymous_mib']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
