"""Who competes, and the gate that each has to pass before it is timed.

``reference`` is eager PyTorch, ``compiled`` is ``torch.compile`` of the same function, and every
backend that is available is called as the package calls it: its module's function, chosen outside
the timed region. No speed is reported on a red gate: :class:`Wrong` is raised instead.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case, bytes_moved, tensors, widened
from iadd_fast.ops import use_backend
from iadd_fast.ops.backends import implementation

BACKENDS = ("cpp", "triton", "cuda")
ORDERS = {"value": "forward", "gradients": "backward", "adjoint": "backward"}
# A place is rounded to a few 1e-6 of a pixel, and neighbouring pixels are independent here.
SLACK = {"diff_augment": 5.0}


class Wrong(AssertionError):
    """A contender's result is not the operator's: its time would mean nothing."""


class Unavailable(RuntimeError):
    """A contender cannot run a case here; the message says why."""


@functools.cache
def tolerances() -> Any:
    """``tests/tolerances.py``: by its path, as other packages may be called ``tests`` too."""
    path = Path(__file__).resolve().parents[1] / "tests" / "tolerances.py"
    spec = importlib.util.spec_from_file_location("iadd_fast_tolerances", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tolerance(case: Case) -> float:
    """The largest :func:`error` that passes."""
    bound: float = tolerances().TOLERANCES[case.dtype][ORDERS.get(case.order, case.order)]
    return bound * SLACK.get(case.operator, 1.0)


def error(got: Tensor, want: Tensor) -> float:
    """``RMS(got - want) / RMS(want)``; infinite where shapes differ or a value is not finite."""
    if got.shape != want.shape:
        return math.inf
    found: float = tolerances().relative_error(got.to(want.device), want)
    return found


@dataclass
class Contest:
    """One case on one device: its inputs and truth, and its contenders.

    The inputs are drawn and the truth is computed when it is made, on ``drawn_on`` where that is
    given, else on the device; both are freed with it.
    """

    case: Case
    device: torch.device
    drawn_on: torch.device | None = None

    def __post_init__(self) -> None:
        drawn = self.case.arguments(self.drawn_on or self.device)
        self.arguments = tuple(
            value.to(self.device) if isinstance(value, Tensor) else value for value in drawn
        )
        self.truth = tensors(_function("reference", self.case, drawn)(*widened(drawn)))
        self.limit = tolerance(self.case)
        self._bytes = 0
        # Compiled functions are kept per code object, of which only a few shapes are allowed.
        torch.compiler.reset()

    @property
    def bytes(self) -> int:
        """The least the operator moves; known once a contender has passed."""
        return self._bytes

    def enter(self, contender: str) -> tuple[Callable[..., Any], float]:
        """A contender's function, warm, and its error.

        Raises:
            Unavailable: it cannot run here.
            Wrong: the gate is red.
        """
        function = _function(contender, self.case, self.arguments)
        with warnings.catch_warnings():
            # The compiler's own modules warn when they are first imported.
            warnings.simplefilter("ignore")
            result = self._first(contender, function)
        outputs = tensors(result)
        if len(outputs) != len(self.truth):
            raise Wrong(
                f"{contender} is wrong on {self.case.name}: {len(outputs)} outputs instead of "
                f"{len(self.truth)}"
            )
        found = [error(got, want) for got, want in zip(outputs, self.truth, strict=True)]
        if not max(found) <= self.limit:
            errors = ", ".join(f"{value:.1e}" for value in found)
            raise Wrong(
                f"{contender} is wrong on {self.case.name}: RMS error {errors} of its outputs, at "
                f"most {self.limit:.1e} passes"
            )
        self._bytes = bytes_moved(self.arguments, result)
        return function, max(found)

    def _first(self, contender: str, function: Callable[..., Any]) -> Any:
        """A second result: compiling and tuning are over by then."""
        try:
            function(*self.arguments)
        except Exception as failure:
            if contender != "compiled":
                raise
            line = (str(failure).strip().splitlines() or [""])[0]
            raise Unavailable(f"torch.compile fails: {type(failure).__name__}: {line}") from failure
        result = function(*self.arguments)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return result


def contenders(device: torch.device) -> tuple[str, ...]:
    """Those that may run on a device; whether they do is found case by case."""
    on = {"cpu": ("cpp",), "cuda": ("triton", "cuda")}
    return ("reference", "compiled", *on[device.type])


def _function(contender: str, case: Case, arguments: tuple[Any, ...]) -> Callable[..., Any]:
    first = tensors(arguments)[0]
    name = contender if contender in BACKENDS else "reference"
    try:
        with use_backend(name):
            module = implementation(case.operator, first)
    except RuntimeError as reason:
        raise Unavailable(str(reason)) from None
    function: Callable[..., Any] = getattr(module, case.function)
    if contender != "compiled":
        return function
    return torch.compile(function, dynamic=False, fullgraph=True)
