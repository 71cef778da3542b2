"""Which backend serves each operator, and why another does not."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.native import library

OPERATORS = (
    "param_distance",
    "diff_augment",
    "norm_relu_pool",
    "softmax_cross_entropy",
    "conv3x3",
)
#: In the order of preference; the first that is available and takes the tensor runs.
BACKENDS = ("cuda", "triton", "cpp", "reference")

_ROOMS = {"cuda": "native", "triton": "kernels", "cpp": "native", "reference": "reference"}
_DTYPES = {
    "cuda": (torch.float32, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16),
    "cpp": (torch.float32, torch.float64),
    "reference": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}
# Where hand-written CUDA must be deterministic or should win; Triton serves the others on a GPU.
_CUDA_OPERATORS = ("param_distance", "diff_augment")
# cuDNN's kernels are better than ours would be.
_CUDNN_OPERATORS = ("conv3x3",)

_forced: str | None = None


def backends() -> dict[str, dict[str, str | None]]:
    """Operator -> backend -> ``None`` where it is available, else the reason it is not.

    The backends stand in the order of preference; ``"reference"`` is always available. Loads the
    compiled libraries if nothing has yet.
    """
    return {
        operator: {backend: _missing(operator, backend) for backend in BACKENDS}
        for operator in OPERATORS
    }


class use_backend:  # noqa: N801 (used as a function and as a context, like torch.no_grad)
    """Make every operator run on one backend: until the ``with`` block ends, or from now on.

    Args:
        name: ``"cuda"``, ``"triton"``, ``"cpp"``, ``"reference"``, or None for the best available.
            An operator that this backend cannot serve then raises instead of taking another.
            ``"triton"`` on CPU tensors needs TRITON_INTERPRET=1 in the environment from the start.

    Raises:
        ValueError: no backend of that name.
    """

    def __init__(self, name: str | None) -> None:
        global _forced
        if name is not None:
            arguments.choice("name", name, BACKENDS)
        self._before = _forced
        _forced = name
        _choose.cache_clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _forced
        _forced = self._before
        _choose.cache_clear()


def backend_of(operator: str, tensor: Tensor) -> str:
    """The backend that runs ``operator`` on a tensor of this device and dtype.

    Raises:
        ValueError: no such operator.
        RuntimeError: :class:`use_backend` forces one that cannot serve it; the message says why.
    """
    if operator not in OPERATORS:
        raise ValueError(f"operator: got {operator!r}; takes one of {', '.join(OPERATORS)}")
    return _choose(operator, tensor.device.type, tensor.dtype)


def implementation(operator: str, tensor: Tensor) -> Any:
    """The module that runs ``operator`` on ``tensor``: the functions of the reference, unchecked.

    For callers inside the package that call an operator many times and have checked it once.
    """
    return _module(operator, _choose(operator, tensor.device.type, tensor.dtype))


@functools.cache
def _module(operator: str, backend: str) -> Any:
    return importlib.import_module(f"iadd_fast.{_ROOMS[backend]}.{operator}")


@functools.cache
def _choose(operator: str, device: str, dtype: torch.dtype) -> str:
    if _forced is not None:
        reason = _missing(operator, _forced) or _refuses(_forced, device, dtype, forced=True)
        if reason is not None:
            raise RuntimeError(f"use_backend({_forced!r}): {operator} cannot run on it: {reason}")
        return _forced
    for backend in BACKENDS:
        if not _missing(operator, backend) and not _refuses(backend, device, dtype, forced=False):
            return backend
    raise RuntimeError(f"{operator}: no backend takes {dtype}")


def _missing(operator: str, backend: str) -> str | None:
    if backend == "cpp":
        return library.missing("cpu")
    if backend in ("cuda", "triton") and operator in _CUDNN_OPERATORS:
        kind = "CUDA C++" if backend == "cuda" else "Triton"
        return f"no {kind} kernel of its own; cuDNN serves it through the reference"
    if backend == "cuda":
        if operator not in _CUDA_OPERATORS:
            return "no CUDA C++ kernel; Triton serves it on a GPU"
        return library.missing("cuda") or _no_device()
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if not _interpreting() and not _c_compiler():
            return "triton needs a C compiler for its launcher (gcc, clang or CC)"
        return None if _interpreting() else _no_device()
    return None


def _refuses(backend: str, device: str, dtype: torch.dtype, *, forced: bool) -> str | None:
    if dtype not in _DTYPES[backend]:
        takes = ", ".join(str(known).removeprefix("torch.") for known in _DTYPES[backend])
        return f"it takes {takes}, got {str(dtype).removeprefix('torch.')}"
    devices = {"cpp": ["cpu"], "cuda": ["cuda"], "triton": ["cuda"]}
    # The interpreter is for tests: thousands of times slower, so never a silent choice.
    if backend == "triton" and forced and _interpreting():
        return None
    if backend in devices and device not in devices[backend]:
        return f"it takes tensors on {devices[backend][0]}, got {device}"
    return None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _c_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))


def _no_device() -> str | None:
    return None if torch.cuda.is_available() else "no CUDA device"
