"""The process of one contender: requests and answers are lines of JSON on stdin and stdout.

The first request says what to build; then ``warm_up``, ``time``, ``gradients``, ``memory`` and
``rates``. It ends with its stdin, so that none is left when the parent is gone.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from iadd_fast.artifacts.files import save_tensors
from iadd_fast.comparison.floor import measure_rates, synchronise
from iadd_fast.comparison.memory import PeakMemory
from iadd_fast.comparison.problem import (
    CompareSettings,
    Contender,
    Iteration,
    gradients,
    make_iteration,
)
from iadd_fast.fused.precision import products_in

SHORT = 0.2  # seconds below which an untimed call goes ahead of a timed one
WARM = 1.0  # seconds of further calls while warming up


class Work:
    """What the process does for its parent, one method a request."""

    def __init__(
        self,
        settings: dict[str, Any],
        contender: dict[str, Any],
        device: str,
        threads: int,
        float64: bool,
    ) -> None:
        torch.set_num_threads(threads)
        self.settings = CompareSettings(**settings)
        self.device = torch.device(device)
        self.contender = Contender(**contender)
        self.dtype = torch.float64 if float64 else self.settings.dtype
        self.iteration = self._make()
        self.last = 0.0

    def warm_up(self) -> float:
        """Compile and allocate; seconds it took. A long call that compiles nothing runs once."""
        began = time.perf_counter()
        self._call()
        least = 2 if self.contender.compile or self.last < SHORT else 1
        done, over = 1, time.perf_counter() + WARM
        while done < least or (time.perf_counter() + self.last < over and done < 5):
            self._call()
            done += 1
        return time.perf_counter() - began

    def time(self) -> float:
        """Seconds of one call with warm caches."""
        if self.last < SHORT:
            self._call()
        return self._call()

    def gradients(self, path: str, change: float = 0.0) -> None:
        """Write every gradient in float64, of images that are other by ``change``."""
        iteration = self._make(change) if change else self.iteration
        found = {name: value.double() for name, value in gradients(iteration())}
        save_tensors(Path(path), found, {})

    def memory(self) -> dict[str, Any]:
        """Peak of two calls above what was there before the first.

        Buffers that an engine keeps count. What Python loads for it does not (150 MB for
        ``torch.func``): another, tiny problem runs before. Nor does a compiler's own memory: the
        compiled contender, which keeps no buffers, is called once before.
        """
        small = replace(
            self.settings, image_size=8, classes=2, width=4, depth=1, images_per_class=1, steps=1
        )
        eager = replace(self.contender, compile=False)
        make_iteration(small, eager, self.device, self.settings.dtype)()
        if self.contender.compile:
            self._call()
        peak = PeakMemory(self.device)
        for _ in range(2):
            self._call()
        return {"megabytes": peak.megabytes(), "method": peak.method}

    def rates(self) -> tuple[float, float]:
        """FLOP/s and bytes/s of this machine, under the TF32 switch that the engines set."""
        fast = self.settings.precision in ("tf32", "bfloat16")
        with products_in("tf32" if fast else "float32", self.device):
            return measure_rates(self.settings.precision, self.device)

    def _make(self, change: float = 0.0) -> Iteration:
        return make_iteration(self.settings, self.contender, self.device, self.dtype, change)

    def _call(self) -> float:
        synchronise(self.device)
        began = time.perf_counter()
        self.iteration()
        synchronise(self.device)
        self.last = time.perf_counter() - began
        return self.last


def serve(make: Callable[..., Any]) -> None:
    """Answer until stdin ends; whatever else is printed goes to stderr.

    ``make`` takes what the first request holds; the methods of what it returns answer the others.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("do")
        try:
            if work is None:
                work = make(**request)
                answer: dict[str, Any] = {"answer": None}
            else:
                answer = {"answer": getattr(work, name)(**request)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(Work)
