"""``compare``: one fresh process per contender, timed in turns."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from iadd_fast import arguments
from iadd_fast.artifacts.files import load_tensors
from iadd_fast.comparison.floor import floor, layers
from iadd_fast.comparison.memory import available
from iadd_fast.comparison.problem import CONTENDERS, LIMITS, CompareSettings, Contender
from iadd_fast.comparison.processes import Process
from iadd_fast.comparison.result import Comparison, ContenderRow, make_row, relative_errors
from iadd_fast.devices import resolve_device
from iadd_fast.machine import device_name
from iadd_fast.versions import versions

PAUSE = 0.02  # seconds in which the threads of the process before go to sleep
MOST_ROUNDS = 200
#: Bytes that full backpropagation keeps for each byte of convolution output (measured: 5 to 7.5).
KEPT = 8


def compare(
    contenders: Sequence[str] | None = None,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Time, memory and errors of one outer iteration by every engine, on this machine.

    Each contender runs in a fresh process, on the same seeded problem, in the same precision (for
    bfloat16, which "fused" alone has, the others take TF32). Its memory is measured in one process
    and its time in another: those are prepared one after the other (where something is compiled, it
    is then), and asked in turns for one iteration each, so that whatever else the machine does
    falls on all of them. At least ``repeats`` rounds, and more until ``seconds`` are over.

    The errors are against engine "reference" in float64; against "module" in float64 where the
    memory for "reference" would not be there. A contender whose error is above 1e-3 in float32
    (3e-2 in TF32, 0.3 in bfloat16, 1e-8 in float64: limits that catch what is wrong, not what is
    imprecise) has no time, unless the problem itself is that sensitive: unless images that are
    other by 1e-6 move the float64 gradient as far, by the kinks of ReLU.

    Memory is what goes beyond the process as it was before the contender's first call on this
    problem, buffers that an engine keeps included; of "compiled", which keeps none, beyond what it
    was after compiling. On a CPU it is resident memory, on a GPU what torch's allocator handed out.

    Args:
        contenders: any of "reference" (backpropagation through the whole unroll, MTT's order),
            "compiled" (forward-over-reverse with recomputation under ``torch.compile``), "module"
            (the same, eager), "fused"; default: all.
        device: default: CUDA where there is one.
        progress: show a bar.
        **settings: fields of :class:`~iadd_fast.comparison.CompareSettings`.

    Returns:
        Rows, floor (:mod:`iadd_fast.comparison.floor`), problem and machine, with ``.table()``.

    Raises:
        TypeError, ValueError: an unknown setting or contender, or a value out of range.
        ContenderFailed: a contender cannot run this problem, or its process ended.
    """
    arguments.instance("progress", progress, bool, "True or False")
    options = CompareSettings.of(**settings)
    chosen = _chosen(contenders)
    student = options.student()
    where = resolve_device(device)
    common = {
        "settings": options.to_dict(),
        "device": str(where),
        "threads": torch.get_num_threads(),
    }
    truth = truth_engine(options, where)
    bar = tqdm(total=1 + 2 * len(chosen) + options.repeats, desc="compare", disable=not progress)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running, bar:

        def begin(name: str, contender: Contender, *, float64: bool = False) -> Process:
            process = Process(name)
            running.callback(process.close)
            process.ask("begin", contender=asdict(contender), float64=float64, **common)
            return process

        def tell(what: str) -> None:
            bar.set_postfix_str(what)

        tell("float64")
        truth_process = begin(f"{truth} in float64", Contender(truth), float64=True)
        truth_process.ask("gradients", path=f"{folder}/truth.safetensors")
        changed = {"path": f"{folder}/changed.safetensors", "change": options.change}
        truth_process.ask("gradients", **changed)
        bar.update()
        memory = {}
        for name, contender in chosen.items():
            tell(f"{name}, memory")
            with begin(name, contender) as process:
                memory[name] = process.ask("memory")
            bar.update()
        processes: dict[str, Process] = {}
        for name, contender in chosen.items():
            tell(f"{name}, preparing")
            processes[name] = begin(name, contender)
            processes[name].ask("warm_up")
            processes[name].ask("gradients", path=f"{folder}/{name}.safetensors")
            bar.update()
        rates, seconds = _rounds(processes, truth_process, options, bar)
        wanted, _ = load_tensors(Path(folder, "truth.safetensors"))
        moved, _ = load_tensors(Path(folder, "changed.safetensors"))
        sensitivity = relative_errors(moved, wanted)
        limit = LIMITS[options.precision]
        rows: list[ContenderRow] = []
        for name in chosen:
            got, _ = load_tensors(Path(folder, f"{name}.safetensors"))
            errors = relative_errors(got, wanted)
            peak = memory[name]["megabytes"]
            rows.append(make_row(name, seconds[name], peak, errors, limit, sensitivity))
    about = options.to_dict() | {"images": options.images, "parameters": student.num_parameters}
    return Comparison(
        contenders=tuple(rows),
        floor=floor(options, rates),
        problem=about
        | {"truth": truth, "student": student.spec}
        | {"change": options.change, "sensitivity": sensitivity},
        machine=machine(where) | {"memory_method": memory[rows[0].name]["method"]},
        versions=versions(),
    )


def machine(device: torch.device) -> dict[str, Any]:
    """Device, its name, and the threads and cores here."""
    return {
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    }


def _chosen(names: Sequence[str] | None) -> dict[str, Contender]:
    if names is None:
        return dict(CONTENDERS)
    arguments.instance("contenders", names, list | tuple, f"a list out of {', '.join(CONTENDERS)}")
    for name in names:
        arguments.choice("contenders", name, CONTENDERS)
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"contenders: got {names!r}; takes different ones out of {', '.join(CONTENDERS)}"
        )
    return {name: CONTENDERS[name] for name in names}


def truth_engine(options: CompareSettings, device: torch.device) -> str:
    """Engine "reference", or "module" where its float64 graphs would not fit."""
    image = (options.channels, options.image_size, options.image_size)
    plane = sum(layer.plane for layer in layers(options.student(), image))
    needed = KEPT * 8 * plane * sum(options.samples())
    return "reference" if needed < 0.8 * available(device) else "module"


def _rounds(
    processes: dict[str, Process], measuring: Process, options: CompareSettings, bar: Any
) -> tuple[list[tuple[float, float]], dict[str, list[float]]]:
    """The machine's rates and every contender's seconds, once a round, each in its turn."""
    rates: list[tuple[float, float]] = []
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    names, began = list(processes), time.perf_counter()
    done = 0
    while done < options.repeats or (
        time.perf_counter() - began < options.seconds and done < MOST_ROUNDS
    ):
        bar.set_postfix_str(f"round {done + 1}")
        rates.append(measuring.ask("rates"))
        first = done % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE)
            seconds[name].append(processes[name].ask("time"))
        done += 1
        bar.total = max(bar.total, bar.n + 1)
        bar.update()
    return rates, seconds
