"""The stages behind ``gpu_check.sh``: build, test, sanitize and time the kernels on this GPU.

    bench/gpu_check.sh --out DIR

DIR receives at most eight files: ``environment.json`` (the build's report in it), ``tests.json``,
``sanitizer.json``, ``unroll.json``, ``benchmarks.json``, ``resources.md``, ``log.txt`` with
everything that was printed, and ``summary.json`` (stage -> ok, failed or skipped, with the reason
and the seconds), written anew after every stage. A stage has a time limit of its own. The exit
status is 1 where a stage failed and 2 where nothing could start.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Seconds for everything, kept for the last stage, for the unroll at most, for the benchmarks at
# least.
LIMIT, RESERVED, UNROLL, LEAST = 580.0, 80.0, 240.0, 90.0
NEEDED = ("torch", "triton", "typer", "tqdm", "safetensors", "sklearn", "matplotlib", "jinja2")


class Skipped(Exception):
    """A stage has nothing to run here; the message says why."""


class Failed(Exception):
    """A stage found something wrong, or could not finish."""


@dataclass
class Check:
    """A run of all stages; ``begin`` is when it started."""

    out: Path
    begin: float = field(default_factory=time.monotonic)
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds that are left for everything."""
        return LIMIT - (time.monotonic() - self.begin)

    def write(self, name: str, content: Any) -> None:
        """JSON in the output folder."""
        (self.out / name).write_text(json.dumps(content, indent=1) + "\n")

    def stage(self, name: str, work: Callable[[Check], Any]) -> None:
        """Runs a stage and keeps how it ended; no stage stops the ones behind it."""
        print(f"== {name}", flush=True)
        begin, status, reason = time.monotonic(), "ok", ""
        try:
            reason = str(work(self) or "")
        except Skipped as why:
            status, reason = "skipped", str(why)
        except Exception as why:
            status, reason = "failed", str(why) or type(why).__name__
        seconds = round(time.monotonic() - begin, 1)
        self.summary[name] = {"status": status, "reason": reason, "seconds": seconds}
        self.write("summary.json", self.summary)
        print(f"== {name}: {status} in {seconds:.0f} s{reason and ': ' + reason}", flush=True)

    def run(self, command: list[str], limit: float, **environment: str) -> dict[str, Any]:
        """A command with its output here and in the log; stopped with its children at ``limit``."""
        limit = max(1.0, min(limit, self.left()))
        begin = time.monotonic()
        words = [Path(command[0]).name, *command[1:]]
        shown = " ".join(words).replace(str(self.out), "DIR").replace(sys.executable, "python")
        with (self.out / "log.txt").open("a+", errors="replace") as log:
            log.write(f"\n$ {shown}\n")
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = None
            log.seek(start)
            printed = log.read()
        print(printed[-6000:], flush=True)
        return {
            "command": shown,
            "exit": code,
            "limit": round(limit),
            "seconds": round(time.monotonic() - begin, 1),
            "tail": printed.splitlines()[-60:],
        }


def environment(check: Check) -> None:
    """Device, driver, versions, date and commit."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    check.write(
        "environment.json",
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _first_line(["git", "rev-parse", "HEAD"]),
            "device": torch.cuda.get_device_name(),
            "capability": f"{major}.{minor}",
            "driver": _first_line(
                ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            ),
            "nvcc": _last_line(["nvcc", "--version"]),
            "python": sys.version.split()[0],
            "torch": str(torch.__version__),
            "torch_cuda": torch.version.cuda,
            "cores": os.cpu_count(),
            "packages": {name: _version(name) for name in (*NEEDED, "pytest", "pytest_benchmark")},
        },
    )
    print((check.out / "environment.json").read_text())


def build(check: Check) -> str:
    """Both libraries, in place; fails where a library is missing afterwards."""
    install = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    result = check.run([*install, "--verbose", "--editable", "."], 150)
    asked = (
        "import json; from iadd_fast.native.library import missing; "
        "print(json.dumps({name: missing(name) for name in ('cpu', 'cuda')}))"
    )
    found = check.run([sys.executable, "-c", asked], 20)
    held = json.loads((check.out / "environment.json").read_text())
    check.write("environment.json", {**held, "build": [result, found]})
    _demand(result)
    _demand(found)
    reasons = {name: why for name, why in json.loads(found["tail"][-1]).items() if why}
    if reasons:
        raise Failed("; ".join(f"{name}: {why}" for name, why in reasons.items()))
    return "cpu and cuda"


def tests(check: Check) -> str:
    """The tests that carry the marker ``gpu``."""
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    result = check.run([sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"], 90)
    check.write("tests.json", result)
    if result["exit"] == 5:
        raise Skipped("no test carries the marker gpu")
    _demand(result)
    last: str = result["tail"][-1] if result["tail"] else ""
    if " passed" not in f" {last}":
        raise Failed(f"no test ran: {last}")
    return last


def sanitizer(check: Check) -> str:
    """Every kernel on small shapes: alone, under memcheck and under racecheck."""
    script = [sys.executable, "bench/sanitizer_run.py"]
    # Kernels are compiled here, outside the sanitizer, which then finds them in Triton's cache.
    results = [check.run(script, 45)]
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    there = Path(tool).exists()
    for name in ("memcheck", "racecheck") if there else ():
        command = [tool, "--tool", name, "--error-exitcode", "9", *script]
        # Without torch's pool every tensor is an allocation whose ends are watched.
        results.append(check.run(command, 50, PYTORCH_NO_CUDA_MEMORY_CACHING="1"))
    check.write("sanitizer.json", results)
    _demand(results[0])
    if not there:
        raise Skipped("compute-sanitizer is not here (the kernels were right without it)")
    if any("not supported" in line for result in results[1:] for line in result["tail"]):
        raise Skipped("compute-sanitizer does not support this device (the kernels were right)")
    for result in results[1:]:
        _demand(result)
    return "memcheck and racecheck"


def unroll(check: Check) -> str:
    """One outer iteration by every engine, and the peak memory over its steps."""
    target = check.out / "unroll.json"
    script = [sys.executable, "bench/bench_unroll.py", "--device", "cuda"]
    limit = min(UNROLL, check.left() - RESERVED - LEAST)
    # The memory first: it compiles nothing. No further row is begun after the budget.
    parts = ["--memory", "--compare", "--budget", f"{limit / 3:.0f}", "--json", str(target)]
    result = check.run([*script, *parts], limit)
    if not target.exists():
        _demand(result)
    held = json.loads(target.read_text())
    wrong = [
        f"{row['name']}: {row['failed']}"
        for found in held["comparisons"]
        for row in found["contenders"]
        if row["failed"]
    ]
    if wrong:
        raise Failed("; ".join(wrong))
    _demand(result)
    return f"{len(held['comparisons'])} rows, {len(held['memory'])} memory lines"


def benchmarks(check: Check) -> str:
    """``tables.py`` on the GPU, with the time that is left: it needs no pytest-benchmark."""
    target = check.out / "benchmarks.json"
    room = check.left() - RESERVED
    # The largest suite last: it takes what the others leave of the budget.
    operators = ["softmax_cross_entropy", "param_distance", "diff_augment", "norm_relu_pool"]
    options = ["--device", "cuda", "--seconds", "0.1", "--budget", f"{room - 30:.0f}"]
    script = [sys.executable, "bench/tables.py"]
    result = check.run([*script, *operators, *options, "--json", str(target)], room)
    _demand(result)
    held = json.loads(target.read_text())
    times = sum("median_ms" in row for row in held["rows"])
    return f"{times} times behind a green gate, {held['left_out']} cases left out for time"


def resources(check: Check) -> str:
    """Registers and spills, compiled for every architecture: needs no GPU, so it comes last."""
    script = "bench/kernel_resources.py"
    if not (ROOT / script).exists():
        raise Skipped(f"{script} is not here")
    target = check.out / "resources.md"
    result = check.run([sys.executable, script, "--markdown", str(target)], check.left())
    _demand(result)
    return result["tail"][-1] if result["tail"] else ""


STAGES: dict[str, Callable[[Check], Any]] = {
    "environment": environment,
    "build": build,
    "tests": tests,
    "sanitizer": sanitizer,
    "unroll": unroll,
    "benchmarks": benchmarks,
    "resources": resources,
}


def refusal() -> str | None:
    """Why nothing can run here, or None."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} cannot import torch; PYTHON=/path/to/python names another"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device here"
    return None


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="gpu_check", description="Checks the kernels on a GPU.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
    out = parser.parse_args().out.resolve()
    reason = refusal()
    if reason is not None:
        print(f"gpu_check: needs a GPU: {reason}", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    (out / "log.txt").write_text("")
    check = Check(out)
    for name, work in STAGES.items():
        check.stage(name, work)
    print("\n| stage | result | seconds | |\n| --- | --- | --- | --- |")
    for name, ended in check.summary.items():
        print(f"| {name} | {ended['status']} | {ended['seconds']:.0f} | {ended['reason']} |")
    return int(any(ended["status"] == "failed" for ended in check.summary.values()))


def _demand(result: dict[str, Any]) -> None:
    if result["exit"] is None:
        raise Failed(f"`{result['command']}` was stopped after {result['limit']} s")
    if result["exit"]:
        last = result["tail"][-1] if result["tail"] else "it printed nothing"
        raise Failed(f"`{result['command']}` exits with {result['exit']}: {last}")


def _printed(command: list[str]) -> list[str]:
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return run.stdout.strip().splitlines() if run.returncode == 0 else []


def _first_line(command: list[str]) -> str | None:
    return next(iter(_printed(command)), None)


def _last_line(command: list[str]) -> str | None:
    return next(reversed(_printed(command)), None)


def _version(module: str) -> str | None:
    """Of an importable module; None where it is missing."""
    if importlib.util.find_spec(module) is None:
        return None
    from importlib.metadata import packages_distributions, version

    names = packages_distributions().get(module)
    return version(names[0]) if names else "unknown"


if __name__ == "__main__":
    sys.exit(main())
