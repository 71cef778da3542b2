"""The Triton kernels run on a GPU or, without one, under Triton's interpreter on CPU tensors."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]


def pytest_report_header() -> str | None:
    return "kernels: skipped, triton is not installed" if collect_ignore_glob else None


@pytest.fixture
def device() -> str:
    """Where the kernels under test run."""
    from iadd_fast.kernels.launch import INTERPRETED

    if INTERPRETED:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    pytest.skip("no CUDA device, and TRITON_INTERPRET was not set when the kernels were imported")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel leaves unwritten reads as NaN instead of as what lay there before."""

    def poison(allocate: Any) -> Any:
        def poisoned(*arguments: Any, **options: Any) -> torch.Tensor:
            tensor: torch.Tensor = allocate(*arguments, **options)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return poisoned

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
