"""Memory that a backend allocates starts as NaN: a place it does not write shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from iadd_fast import ops


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.empty`` and its relatives give NaN (-1 for whole numbers)."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoning(getattr(owner, name)))


def _poisoning(allocate: Any) -> Any:
    def allocate_poisoned(*arguments: Any, **keywords: Any) -> Any:
        tensor = allocate(*arguments, **keywords)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else -1)

    return allocate_poisoned


@pytest.fixture(params=["cpp", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend that serves CPU tensors in all dtypes of the public operators."""
    name: str = request.param
    reason = ops.backends()["norm_relu_pool"][name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    with ops.use_backend(name):
        yield name
