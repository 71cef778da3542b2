"""Options and fixtures of the benches.

    python -m pytest bench -o python_files='bench_*.py' --benchmark-only

A benchmark is one contender on one case. It passes the gate first, in the same run; where that is
red the benchmark fails and has no time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch

from bench.cases import Case, cases
from bench.contenders import Contest, Unavailable, contenders
from bench.rows import about, row, surroundings
from bench.timing import (
    MOST_ROUNDS,
    ROUNDS,
    Sample,
    copy_bandwidth,
    graphed,
    interleaved,
    rotation,
    timed,
)

Measure = Callable[[Any, Case, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a run of the benches can choose."""
    group = parser.getgroup("iadd_fast benches")
    group.addoption(
        "--bench-device", choices=("cpu", "cuda"), help="default: a GPU if there is one"
    )
    group.addoption("--bench-threads", type=int, help="CPU threads (default: all cores)")
    group.addoption("--bench-seconds", type=float, default=0.3, help="of each benchmark's rounds")


def pytest_configure(config: pytest.Config) -> None:
    """A red gate is one failure, not a second one for a benchmark that was not timed."""
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used")


def bench_device(config: pytest.Config) -> torch.device:
    """The device that the benches run on."""
    chosen = config.getoption("--bench-device")
    return torch.device(chosen or ("cuda" if torch.cuda.is_available() else "cpu"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``case`` and ``contender`` of a bench: all of its file's operator, a case's together."""
    if "case" not in metafunc.fixturenames:
        return
    device = bench_device(metafunc.config)
    pairs = [
        pytest.param(case, contender, id=f"{case.name}-{contender}")
        for case in cases(metafunc.module.OPERATOR, device)
        for contender in contenders(device)
    ]
    metafunc.parametrize("case, contender", pairs)


def graph_sample(function: Callable[..., Any], inputs: Any, seconds: float) -> Sample | None:
    """Times out of a CUDA graph; None where the function cannot be captured."""
    try:
        replayed = graphed(function, inputs)
    except RuntimeError:
        return None
    return interleaved({"graph": replayed}, seconds)["graph"]


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Iterator[Measure]:
    """``measured(benchmark, case, contender)``: gate, warm-up, rounds and ``extra_info``."""
    device = bench_device(request.config)
    threads = request.config.getoption("--bench-threads")
    if threads:
        torch.set_num_threads(threads)
    seconds = request.config.getoption("--bench-seconds")
    session = surroundings(device) | {"copy_gb_s": copy_bandwidth(device)}
    held: list[Contest] = []

    def measure(benchmark: Any, case: Case, contender: str) -> None:
        if not held or held[0].case != case:
            held.clear()  # before the next one is drawn
            held.append(Contest(case, device))
        contest = held[0]
        try:
            function, error = contest.enter(contender)
        except Unavailable as reason:
            pytest.skip(str(reason))
        inputs = rotation(contest.arguments, device)
        timer = timed(function, inputs, device)
        rounds = max(ROUNDS, min(MOST_ROUNDS, round(seconds / (timer.seconds() * timer.calls))))
        benchmark.group = case.name
        calls, graph = 1, None
        if device.type == "cuda":
            # One synchronisation after many calls: a round, not a call, is what is timed.
            calls = timer.calls
            benchmark.pedantic(timer.run, rounds=rounds, warmup_rounds=1)
            graph = graph_sample(function, inputs, seconds)
        else:
            benchmark.pedantic(
                function, args=inputs[0], rounds=rounds, iterations=timer.calls, warmup_rounds=1
            )
        stats = benchmark.stats.stats
        found = Sample(stats.median / calls, stats.q1 / calls, stats.q3 / calls, rounds)
        benchmark.extra_info |= about(case, session, contender)
        benchmark.extra_info |= row(found, graph, contest.bytes, session["copy_gb_s"])
        benchmark.extra_info |= {
            "error": error,
            "tolerance": contest.limit,
            "rotated_inputs": len(inputs),
        }

    yield measure
