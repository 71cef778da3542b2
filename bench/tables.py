"""Tables of the benches: contenders timed in turn here, or what a pytest-benchmark file holds.

    python bench/tables.py [OPERATOR ...] [--device cpu|cuda] [--threads N] [--json FILE]
    python bench/tables.py --from RESULTS.json

The first form times every contender once a round, A B C, B C A, .., so that a ratio is one of times
taken under the same load; it needs no pytest. A missed target is marked ``MISSED``, a contender
that fails its gate has no time and makes the exit status 1. RESULTS.json is a file of
``pytest --benchmark-json`` or of ``--json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.cases import OPERATORS, Case, cases
from bench.contenders import Contest, Unavailable, Wrong, contenders
from bench.rows import about, row, surroundings
from bench.timing import Sample, Timed, copy_bandwidth, graphed, interleaved, rotation, timed
from bench.writing import markdown, targets


def compare(case: Case, session: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """A row for each contender of a case: its time, or why it has none."""
    device = torch.device(session["device"])
    contest = Contest(case, device)
    rows: dict[str, dict[str, Any]] = {}
    functions = {}
    for name in contenders(device):
        rows[name] = about(case, session, name)
        try:
            functions[name], rows[name]["error"] = contest.enter(name)
        except Unavailable as reason:
            rows[name]["unavailable"] = str(reason)
        except Wrong as reason:
            rows[name]["wrong"] = str(reason)
    inputs = rotation(contest.arguments, device)
    rounds = {name: timed(function, inputs, device) for name, function in functions.items()}
    samples = interleaved(rounds, seconds)
    graphs: dict[str, Sample] = {}
    if device.type == "cuda":
        captured: dict[str, Timed] = {}
        for name, function in functions.items():
            try:
                captured[name] = graphed(function, inputs)
            except RuntimeError as failure:
                rows[name]["no_graph"] = str(failure).splitlines()[0]
        graphs = interleaved(captured, seconds)
    for name, found in samples.items():
        rows[name] |= row(found, graphs.get(name), contest.bytes, session["copy_gb_s"])
        rows[name] |= {"tolerance": contest.limit, "rotated_inputs": len(inputs)}
        rows[name]["calls"] = rounds[name].calls
    return list(rows.values())


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of every case of the operators that were asked for."""
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    session = surroundings(device) | {"copy_gb_s": copy_bandwidth(device)}
    begin = time.perf_counter()
    rows: list[dict[str, Any]] = []
    left_out = 0
    operators = options.operators or OPERATORS
    for place, operator in enumerate(operators):
        spent = time.perf_counter() - begin
        share = spent + (options.budget - spent) / (len(operators) - place)
        for case in cases(operator, device):
            if options.only not in case.name:
                continue
            if time.perf_counter() - begin > share:
                left_out += 1
                continue
            found = compare(case, session, options.seconds)
            rows += found
            times = (f"{one['contender']} {_text(one)}" for one in found)
            print(f"{case.name}: {', '.join(times)}", file=sys.stderr, flush=True)
            _keep(options.json, rows, left_out)  # a run that is cut short leaves what it has
    _keep(options.json, rows, left_out)
    if left_out:
        print(f"{left_out} cases left out: --budget {options.budget:.0f}\n")
    return rows


def _keep(path: Path | None, rows: list[dict[str, Any]], left_out: int) -> None:
    if path is not None:
        path.write_text(json.dumps({"rows": rows, "left_out": left_out}, indent=1) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of pytest-benchmark, or of this script.

    Raises:
        ValueError: it is neither.
    """
    held = json.loads(path.read_text())
    if "rows" in held:
        rows: list[dict[str, Any]] = held["rows"]
        return rows
    if "benchmarks" not in held:
        raise ValueError(f"{path}: holds neither 'benchmarks' (pytest-benchmark) nor 'rows'")
    # Rates of training are no times of an operator; bench_training.py has their table.
    infos = [entry["extra_info"] for entry in held["benchmarks"]]
    return [info for info in infos if "operator" in info]


def _text(one: dict[str, Any]) -> str:
    if "median_ms" in one:
        graph = f" (graph {one['graph_ms']:.4f})" if one.get("graph_ms") else ""
        return f"{one['median_ms']:.4f} ms{graph}"
    return "WRONG" if "wrong" in one else "unavailable"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Tables of the operators' benches.")
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=", ".join(OPERATORS))
    parser.add_argument("--from", dest="source", type=Path, help="write tables from this file")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--seconds", type=float, default=0.5, help="a case's rounds go on for this")
    parser.add_argument(
        "--budget",
        type=float,
        default=1e9,
        help="seconds; an operator starts no case after its share",
    )
    parser.add_argument("--only", default="", help="cases with this in their name")
    options = parser.parse_args(given)
    for operator in options.operators:
        if operator not in OPERATORS:
            parser.error(f"OPERATOR: got {operator!r}; takes {', '.join(OPERATORS)}")
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    return options


def report(rows: Iterable[dict[str, Any]]) -> int:
    """Prints the tables and what was missed or wrong; the exit status."""
    rows = list(rows)
    print(markdown(rows))
    met, missed = targets(rows)
    if met or missed:
        print(f"targets: {met} met, {len(missed)} missed")
    for line in missed:
        print(f"- MISSED {line}")
    wrong = [one["wrong"] for one in rows if "wrong" in one]
    for line in wrong:
        print(f"- GATE FAILED {line}")
    return 1 if wrong else 0


def main() -> int:
    """Tables on stdout, progress on stderr."""
    options = arguments()
    return report(read(options.source) if options.source else run(options))


if __name__ == "__main__":
    sys.exit(main())
