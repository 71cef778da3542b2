"""Memory that a backend allocates starts as NaN: a place it does not write shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iadd_fast import ops
from tests.ops import odd


@pytest.fixture
def poisoned() -> Iterator[None]:
    """``odd.poisoned`` for a whole test."""
    with odd.poisoned():
        yield


@pytest.fixture(params=["cpp", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend that serves CPU tensors in all dtypes of the public operators."""
    name: str = request.param
    reason = ops.backends()["norm_relu_pool"][name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    with ops.use_backend(name):
        yield name
