"""Where memory runs out: clean up, say so, and go on with less or say what to lower."""

from __future__ import annotations

import gc
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

MIB = 2**20

#: How torch and CUDA's libraries say so where they raise a plain RuntimeError.
_TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

Result = TypeVar("Result")


class OutOfMemory(torch.OutOfMemoryError, MemoryError):
    """Memory ran out and nothing that is done about it by itself helped.

    Its message names the settings to lower, and to what. Both a ``torch.OutOfMemoryError`` (of
    whatever device) and Python's ``MemoryError``.
    """


@dataclass(frozen=True)
class Done(Generic[Result]):
    """What an attempt gave."""

    value: Result


@dataclass(frozen=True)
class RanOut:
    """What an attempt that ran out of memory said, in one line."""

    reason: str


def attempt(
    function: Callable[[], Result], device: torch.device, let_go: Callable[[], object] | None = None
) -> Done[Result] | RanOut:
    """``function()``, or what it said when memory ran out; nothing of it is alive then.

    A failed attempt would otherwise live on in its exception, whose frames hold every buffer, and
    in torch's cache of freed blocks, whose sizes do not fit the next attempt's.

    Args:
        function: what may run out.
        device: whose cache is given back.
        let_go: drops what the caller itself still holds of a failed attempt.

    Raises:
        Exception: whatever else ``function`` raises; :class:`OutOfMemory` too, for whoever raised
            it has tried what there was to try.
    """
    try:
        return Done(function())
    except Exception as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _clear(error)
    if let_go is not None:
        let_go()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return RanOut(reason)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error``, or one that was being handled when it was raised, says so.

    Leaving a ``with`` block can raise another error on top of it, as ending a broken capture does.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(seen, RuntimeError) and any(text in str(seen) for text in _TEXTS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def going_on(what: str, ran_out: RanOut, now: str, avoid: str) -> None:
    """Warn that ``what`` ran out of memory, how it goes on, and which setting avoids that."""
    warnings.warn(
        f"{what}: out of memory ({ran_out.reason}); going on {now}. {avoid} avoids the failed "
        "attempt",
        stacklevel=2,
    )


def nothing_helps(what: str, ran_out: RanOut, lower: Sequence[str]) -> OutOfMemory:
    """The error at the end, with the settings to lower, the one that helps most first."""
    return OutOfMemory(f"{what}: out of memory ({ran_out.reason}). Lower {'; or '.join(lower)}")


def mib(count: float) -> str:
    """Bytes as MiB, with a digit behind the point below 10."""
    return f"{count / MIB:,.{1 if count < 10 * MIB else 0}f} MiB"


def _clear(error: BaseException) -> None:
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
