"""What another number of threads, processor or backend changes, beside what another seed changes.

    python bench/reproducibility.py [--quick]

Each row is digits to experts, a distilled set and its accuracy in a fresh process, in which one
thing is otherwise than in the first row. Exits with 1 where the second row, which repeats the first
in another folder and with another hash seed, has other bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import iadd_fast

# Threads that wait for others without spinning: the cores may be fewer, or busy.
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
#: What a row changes -> environment, and options of its process.
ROWS: dict[str, tuple[dict[str, str], list[str]]] = {
    "nothing": ({"PYTHONHASHSEED": "0"}, []),
    "hash seed and folder": ({"PYTHONHASHSEED": "1"}, []),
    "2 threads": (PASSIVE, ["--threads", "2"]),
    "4 threads": (PASSIVE, ["--threads", "4"]),
    "PyTorch's kernels without AVX": ({"ATEN_CPU_CAPABILITY": "default"}, []),
    "oneDNN without AVX": ({"ONEDNN_MAX_CPU_ISA": "SSE41"}, []),
    "MKL's code for every processor": ({"MKL_CBWR": "COMPATIBLE"}, []),
    "backend reference": ({}, ["--backend", "reference"]),
    "engine module": ({}, ["--engine", "module"]),
    "seed 1": ({}, ["--seed", "1"]),
    "seed 2": ({}, ["--seed", "2"]),
}


def work(options: argparse.Namespace) -> dict[str, Any]:
    """One row: hashes of the experts, the set and the accuracies, and the numbers themselves."""
    torch.set_num_threads(options.threads)
    iadd_fast.use_backend(options.backend)
    quick, seed = options.quick, options.seed
    data = iadd_fast.load_data("digits")
    experts = iadd_fast.train_experts(
        data,
        f"convnet:width={8 if quick else 16}",
        "experts",
        count=2 if quick else 5,
        epochs=2 if quick else 6,
        lr=0.02,
        seed=seed,
        progress=False,
    )
    distilled = iadd_fast.distill(
        data,
        experts,
        1,
        iterations=4 if quick else 100,
        steps=3 if quick else 10,
        expert_epochs=1 if quick else 2,
        max_start_epoch=1 if quick else 4,
        lr_images=10.0,
        engine=options.engine,
        seed=seed,
        progress=False,
    )
    measured = iadd_fast.evaluate(
        distilled,
        data,
        baselines=(),
        full=False,
        networks=2 if quick else 10,
        epochs=10 if quick else 300,
        seed=seed,
        progress=False,
    )
    accuracies = measured.rows[0].accuracies
    states = [experts.snapshot(index, experts.epochs) for index in range(len(experts))]
    return {
        "experts": sha256(torch.stack(states)),
        "set": sha256(distilled.images) + sha256(torch.tensor(distilled.lr)),
        "evaluation": sha256(torch.tensor(accuracies)),
        "images": distilled.images.tolist(),
        "accuracies": accuracies,
    }


def sha256(tensor: torch.Tensor) -> str:
    """Of a tensor's bytes."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def in_process(name: str, quick: bool, folder: Path) -> dict[str, Any]:
    """:func:`work` with what row ``name`` changes, in a fresh process and folder."""
    environment, options = ROWS[name]
    where = folder / name.replace(" ", "-")
    where.mkdir()
    command = [sys.executable, str(Path(__file__).resolve()), "--work", *options]
    run = subprocess.run(
        command + ["--quick"] * quick,
        cwd=where,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def row(name: str, found: dict[str, Any], first: dict[str, Any]) -> str:
    """A row of the table."""
    same = ["same" if found[k] == first[k] else "other" for k in ("experts", "set", "evaluation")]
    images, wanted = torch.tensor(found["images"]), torch.tensor(first["images"])
    apart = float((images - wanted).norm() / wanted.norm())
    mean, before = (statistics.fmean(entry["accuracies"]) for entry in (found, first))
    spread = statistics.stdev(found["accuracies"])
    cells = [name, *same, f"{apart:.1g}", f"{mean:.2f} ± {spread:.2f}", f"{mean - before:+.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Print the table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps: bits, no accuracy")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--backend", help=argparse.SUPPRESS)
    parser.add_argument("--engine", default="auto", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(options)))
        return 0
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {capability}, {os.cpu_count()} cores\n")
    print("| changed | experts | set | evaluation | images apart | accuracy | by |")
    print("|---|---|---|---|---|---|---|")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ROWS:
            found[name] = in_process(name, options.quick, Path(folder))
            print(row(name, found[name], found["nothing"]), flush=True)
    return 0 if found["hash seed and folder"] == found["nothing"] else 1


if __name__ == "__main__":
    sys.exit(main())
