"""Medians out of interleaved rounds, and the bandwidth that a copy reaches here.

On a CPU a round is as many calls as fill a millisecond. On a GPU a case is timed twice: launched,
many calls and one synchronisation at the end, which shows the longer of launching and running; and
replayed out of a CUDA graph, which shows the kernels alone. Large inputs are rotated there, so that
the cache does not serve them.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.cases import tensors

ROUND = 1e-3  # seconds that a round takes at least
ROUNDS = 15
MOST_ROUNDS = 500
ROTATED = 2**29  # bytes of rotated inputs: several times the cache of any GPU
WORTH_ROTATING = 2**23  # smaller inputs stay in the cache in real use too


@dataclass(frozen=True)
class Sample:
    """Seconds of one call: the median of the rounds and their quartiles."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Timed:
    """A round: ``run`` makes ``calls`` calls and waits for them."""

    run: Callable[[], None]
    calls: int

    def seconds(self) -> float:
        """Of one call, out of one round."""
        begin = time.perf_counter()
        self.run()
        return (time.perf_counter() - begin) / self.calls


def interleaved(
    contenders: Mapping[str, Timed], seconds: float, rounds: int = ROUNDS
) -> dict[str, Sample]:
    """Every contender once a round, in turn, each round beginning with another one.

    At least ``rounds`` rounds, and then more until ``seconds`` are over.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    if not names:
        return {}
    begin = time.perf_counter()
    for done in itertools.count():
        over = time.perf_counter() - begin > seconds
        if (done >= rounds and over) or done >= max(MOST_ROUNDS, rounds):
            break
        first = done % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(contenders[name].seconds())
    return {name: sample(values) for name, values in taken.items()}


def sample(values: list[float]) -> Sample:
    """Median and quartiles of the rounds."""
    if len(values) < 2:
        return Sample(values[0], values[0], values[0], 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Sample(middle, low, high, len(values))


def timed(
    function: Callable[..., Any], inputs: list[tuple[Any, ...]], device: torch.device
) -> Timed:
    """Rounds of ``function`` on each of ``inputs`` in turn, launched one by one."""
    calls = _calls(function, inputs, device)

    def run() -> None:
        for index in range(calls):
            function(*inputs[index % len(inputs)])
        synchronise(device)

    run()
    return Timed(run, calls)


def graphed(function: Callable[..., Any], inputs: list[tuple[Any, ...]]) -> Timed:
    """Replays of a CUDA graph that holds several calls on each of ``inputs``.

    Raises:
        RuntimeError: the function cannot be captured.
    """
    device = torch.device("cuda")
    calls = len(inputs) * max(1, 20 // len(inputs))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for values in inputs:
            function(*values)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(calls):
            function(*inputs[index % len(inputs)])
    graph.replay()
    synchronise(device)

    def replay(times: int) -> Timed:
        def run() -> None:
            for _ in range(times):
                graph.replay()
            synchronise(device)

        return Timed(run, calls * times)

    once = replay(1).seconds() * calls
    return replay(max(1, round(2 * ROUND / once)))


def rotation(arguments: tuple[Any, ...], device: torch.device) -> list[tuple[Any, ...]]:
    """The arguments, and on a GPU as many copies as outgrow its cache where they are large."""
    size = sum(value.numel() * value.element_size() for value in tensors(arguments))
    if device.type != "cuda" or size < WORTH_ROTATING:
        return [arguments]
    copies = min(16, max(2, -(-ROTATED // size)))
    return [arguments, *(_copied(arguments) for _ in range(copies - 1))]


def synchronise(device: torch.device) -> None:
    """Waits for the device's work; the CPU has none outstanding."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def copy_bandwidth(device: torch.device, megabytes: int = 64) -> float:
    """GB/s of ``Tensor.copy_``, bytes read plus bytes written; median of 30 rounds."""
    count = 8 if device.type == "cuda" else 1
    size = megabytes * 2**20 // 4
    pairs = [
        (torch.empty(size, device=device).fill_(0), torch.rand(size, device=device))
        for _ in range(count)
    ]

    def copy(target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    found = interleaved({"copy": timed(copy, pairs, device)}, 0.3, 30)["copy"]
    return 2 * 4 * size / found.median / 1e9


def _copied(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value.clone(memory_format=torch.preserve_format) if isinstance(value, Tensor) else value
        for value in arguments
    )


def _calls(
    function: Callable[..., Any], inputs: list[tuple[Any, ...]], device: torch.device
) -> int:
    """Calls that fill a round, every input as often as the next one."""

    def once() -> None:
        for values in inputs:
            function(*values)
        synchronise(device)

    once()
    shortest = min(Timed(once, 1).seconds() for _ in range(3))
    least = 2 * ROUND if device.type == "cuda" else ROUND
    return len(inputs) * max(1, round(least / shortest))
