"""Odd arguments, and what every public call owes whoever passes them."""

from __future__ import annotations

import fractions
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import currently_in_test_context, event
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from iadd_fast.artifacts import DistilledSet
from iadd_fast.data import Data, Split
from iadd_fast.data.transform import Standardise
from iadd_fast.students import Student, build

#: Errors that documentation promises; anything else that a call raises is a bug.
CLEAR = (
    ValueError,
    TypeError,
    IndexError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)
#: One line that begins with the name of an argument, or with a path.
NAMED = re.compile(r"(\w[\w .,\[\]'-]*|/[^\n:]*|\.\.?): [^\n]*")
#: Of what the file system says: begins with a path, whatever that holds.
PATH = re.compile(r"(.*): .*", re.DOTALL)

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
#: Values that nobody means, of types that somebody passes.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63 - 1, 2**63, 10**12, 10**30, -(10**30),
    10**4000, 0.0, -0.0, 0.5, 1.0, 1.5, -2.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"),
    float("-inf"), 1j, fractions.Fraction(1, 3), "", "3", "nan", "auto", "none", "dsa", "a:b=c",
    ":", ",", "=", "_", "x" * 5000, "\x00", "ß\n🙂", "../up", b"3", [], [1], ["a"], {}, {"a": 1},
    (), (1, 2), set(), range(3), object(), int, len, np.int64(3), np.int32(-1), np.uint8(255),
    np.float32(0.5), np.float64("nan"), np.bool_(True), np.str_("none"), np.array(3),
    np.array([1.0, 2.0]), torch.tensor(3), torch.tensor(0.5), torch.tensor(float("nan")),
    torch.tensor([1, 2]), torch.zeros(2, 2, device="meta"), torch.zeros(2).to_sparse(),
    torch.float32, torch.device("cpu"), Path("nowhere"),
)  # fmt: skip

# None, "3" and so on find the same bug again and again: they are drawn, never shrunk to.
odd: SearchStrategy[Any] = st.one_of(
    st.sampled_from(ODD),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)


class Refused(str):
    """The message of a clear error."""


def result_of(call: Callable[[], Any], *inputs: Any) -> Any:
    """What ``call`` returns, or :class:`Refused` with the message of its one clear error.

    Fails where the error is of a type that nobody documents, does not name the argument in one
    line, or where a tensor among ``inputs`` is other than before.
    """
    tensors = [value for value in inputs if isinstance(value, Tensor) and readable(value)]
    before = [value.detach().clone() for value in tensors]
    try:
        result = call()
    except CLEAR as error:
        assert type(error) in CLEAR, f"{type(error).__name__}: {error}"
        pattern = PATH if isinstance(error, OSError) else NAMED
        found = pattern.fullmatch(str(error))
        assert found, f"{type(error).__name__} does not name the argument: {error}"
        named = found.group(1)
        told("refused: a path" if pattern is PATH or "/" in named else f"refused: {named}")
        result = Refused(error)
    else:
        told("a result")
    for value, copy in zip(tensors, before, strict=True):
        assert torch.equal(bits(value.detach()), bits(copy)), "an input was changed"
        assert value.grad is None, "an input got a .grad"
    return result


def told(what: str) -> None:
    """An event of the statistics, where there are any."""
    if currently_in_test_context():
        event(what)


def readable(value: Tensor) -> bool:
    """Whether comparing the values is possible and cheap."""
    here = value.layout == torch.strided and not value.is_meta
    return here and value.numel() <= 100_000


def bits(value: Tensor) -> Tensor:
    """For comparisons in which NaN equals itself."""
    return value.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


@st.composite
def strided(draw: st.DrawFn, value: Tensor) -> Tensor:
    """``value`` in other memory: transposed, channels last, with gaps, from the middle, a leaf."""
    kind = draw(
        st.sampled_from(("plain", "swapped", "last", "gaps", "offset", "leaf", "parameter"))
    )
    told(f"memory: {kind}")
    if kind == "swapped" and value.ndim > 1:
        return value.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "last" and value.ndim == 4:
        return value.contiguous(memory_format=torch.channels_last)
    if kind == "gaps" and value.ndim > 0:
        wide = torch.full((*value.shape[:-1], 2 * value.shape[-1]), 7).to(value.dtype)
        wide[..., ::2] = value
        return wide[..., ::2]
    if kind == "offset" and value.ndim > 0:
        return torch.cat([torch.ones_like(value[:1]), value])[1:]
    if kind == "leaf" and value.is_floating_point():
        return value.clone().requires_grad_(True)
    if kind == "parameter" and value.is_floating_point():
        return torch.nn.Parameter(value.clone())
    return value


shapes = st.one_of(
    st.lists(st.integers(0, 5), max_size=5).map(tuple),
    st.sampled_from([(2, 1, 4, 4), (1, 1, 4, 4), (2, 3), (0, 1, 4, 4), (2, 0), (3,), ()]),
)


@st.composite
def odd_tensors(draw: st.DrawFn) -> Tensor:
    """A tensor of any shape, dtype, content, memory and device; huge ones share one value."""
    dtype, kind = (
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(("small", "small", "small", "expanded", "huge", "meta", "sparse"))),
    )
    told(f"tensor: {kind}")
    shape = draw(shapes)
    if kind == "huge":
        return torch.zeros((), dtype=dtype).expand(2**40, *shape[1:3])
    if kind == "expanded":
        return torch.ones((), dtype=dtype).expand(shape)
    content = draw(st.sampled_from((0.0, 1.0, -1.0, 2.5, float("nan"), float("inf"), None)))
    if content is None or not dtype.is_floating_point:
        value = (torch.arange(math.prod(shape)) % 3).reshape(shape).to(dtype)
    else:
        value = torch.full(shape, content, dtype=dtype)
    if kind == "meta":
        return value.to("meta")
    if kind == "sparse":
        return value.to_sparse()
    return draw(strided(value))


def anything() -> SearchStrategy[Any]:
    """A tensor or any other value."""
    return st.one_of(odd_tensors(), odd)


@functools.cache
def small_student(name: str = "convnet") -> Student:
    """Two classes, 1x4x4 images."""
    if name == "mlp":
        return build({"name": "mlp", "inputs": [1, 4, 4], "classes": 2, "width": 3, "depth": 2})
    return build(
        {
            "name": "convnet", "channels": 1, "classes": 2, "image_size": [4, 4], "width": 4,
            "depth": 1, "norm": "instance" if name == "convnet" else name,
        }
    )  # fmt: skip


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values, the same for the same shape and seed."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def small_data(per_class: int = 4) -> Data:
    """Two classes of 1x4x4 images, with validation and test parts."""

    def part(seed: int, count: int) -> Split:
        return Split(normal(2 * count, 1, 4, 4, seed=seed), torch.arange(2 * count) % 2)

    return Data(
        name="small",
        train=part(1, per_class),
        validation=part(2, 1),
        test=part(3, 2),
        class_names=("no", "yes"),
        transform=Standardise(torch.zeros(1), torch.ones(1)),
        fingerprint="0" * 64,
    )


def small_set(**other: Any) -> DistilledSet:
    """A distilled set of :func:`small_data`, one image per class."""
    values: dict[str, Any] = {
        "images": normal(2, 1, 4, 4, seed=4),
        "labels": torch.arange(2),
        "lr": 0.02,
        "class_names": ("no", "yes"),
        "transform": Standardise(torch.zeros(1), torch.ones(1)),
        "student_spec": small_student("mlp").spec,
        "data_name": "small",
        "data_fingerprint": "0" * 64,
    }
    return DistilledSet(**{**values, **other})
