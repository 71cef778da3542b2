"""Which device a job runs on, and the error for one that is not there."""

from __future__ import annotations

import pytest
import torch

from iadd_fast.devices import resolve_device


def test_default_is_the_best_there_is() -> None:
    """Breaks when a GPU is left idle, or asked for where there is none."""
    assert resolve_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda:63", "foo"])
def test_a_device_that_is_not_there_is_one_clear_error(device: str) -> None:
    """torch's own are an AssertionError and a RuntimeError, which read as bugs of ours."""
    with pytest.raises(ValueError, match=f"device: got '{device}', which is not usable here: "):
        resolve_device(device)
