"""Checks of arguments where they enter: one error that names the argument, its value and its range.

Numbers of numpy are taken as Python's own, so that settings stay JSON-able; truth values are no
numbers here, and a text is never one.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Largest whole number that files, generators and tensors can all hold.
LARGEST = 2**63 - 1
#: Largest count of things that are listed one by one before any of them is worked on.
MOST = 1_000_000
#: Larger numbers are infinite in float32, in which almost everything is computed.
LARGEST_FLOAT = 3.4e38

_LONGEST = 80


def shown(value: object) -> str:
    """``value`` for a message: one line of moderate length, whatever it is."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a repr of somebody else's, or an int of too many digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def whole(name: str, value: Any, least: int = 1, most: int = LARGEST) -> int:
    """``value`` as an int from ``least`` to ``most``.

    Raises:
        ValueError: it is none.
    """
    is_whole = not isinstance(value, bool) and isinstance(value, numbers.Integral)
    if not is_whole or int(value) < least:
        raise ValueError(f"{name}: got {shown(value)}; takes a whole number of at least {least}")
    if int(value) > most:
        raise ValueError(f"{name}: got {shown(value)}; takes a whole number of at most {most:,}")
    return int(value)


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """``value`` as a float that is finite in float32 too, within the bounds that are given.

    Raises:
        ValueError: it is no number, not finite or out of bounds.
    """
    bounds = (
        ("above", above, operator.gt),
        ("of at least", least, operator.ge),
        ("below", below, operator.lt),
        ("of at most", most, operator.le),
    )
    given = [(word, bound, holds) for word, bound, holds in bounds if bound is not None]
    found = math.nan
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
    if abs(found) <= LARGEST_FLOAT and all(holds(found, float(bound)) for _, bound, holds in given):
        return found
    takes = " and ".join(f"{word} {bound:g}" for word, bound, _ in given)
    raise ValueError(f"{name}: got {shown(value)}; takes a finite number{takes and ' ' + takes}")


def choice(name: str, value: Any, choices: Collection[str]) -> str:
    """``value`` if it is one of these texts.

    Raises:
        ValueError: it is not; the message lists them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {shown(value)}; takes one of {', '.join(choices)}")
    return value


def text(name: str, value: Any, takes: str = "a text") -> str:
    """``value`` as a plain text.

    Raises:
        TypeError: it is none.
    """
    return str(instance(name, value, str, takes))


def instance(name: str, value: Any, kind: Any, takes: str) -> Any:
    """``value`` if it is an instance of ``kind`` (a type, a tuple or a union of some).

    Raises:
        TypeError: it is not; ``takes`` says what is.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name}: got {shown(value)}; takes {takes}")
    return value


def path(name: str, value: Any) -> Path:
    """``value`` as a path, whether or not there is anything.

    Raises:
        TypeError: it is neither a text nor a path.
        ValueError: no file system takes it: empty, too long, or with a null character.
    """
    instance(name, value, str | Path, "a path")
    try:
        if value == "":
            raise ValueError("it is empty")
        os.stat(value)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"{name}: got {shown(str(value))}; takes a path ({reason})") from None
    return Path(value)


def tensor(name: str, value: Any) -> Tensor:
    """``value`` if it is a strided tensor whose values are there to be read (not on meta).

    Raises:
        TypeError: it is no tensor.
        ValueError: it is sparse, on a device without values, or a view that repeats few values more
            often than this machine has memory for.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {shown(value)}; takes a tensor")
    if value.layout != torch.strided or value.is_meta:
        raise ValueError(
            f"{name}: got {shown(value)}, {value.layout} on {value.device}; takes a strided tensor "
            "with values"
        )
    wanted = value.numel() * value.element_size()
    if wanted > value.untyped_storage().nbytes() and wanted > memory_of_machine():
        raise ValueError(
            f"{name}: got {shown(value)}, a view that stands for {wanted / 2**30:,.0f} GiB; takes "
            "what fits into this machine's memory"
        )
    return value


def memory_of_machine() -> float:
    """Bytes of memory that this machine has; infinite where the system does not say."""
    if not hasattr(os, "sysconf"):  # Windows
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
