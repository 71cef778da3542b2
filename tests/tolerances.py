"""How far a backend may be from the float64 reference: one table for all of them.

The error of a tensor is scale-free, RMS(got - want) / RMS(want), so that one number serves every
operator. Relaxing a number here is a decision to argue for.
"""

from __future__ import annotations

import torch
from torch import Tensor

# By the dtype a tensor is stored in: a few dozen roundings of 1.1e-16 or 6e-8, more with each
# order. bfloat16 is computed in float32: its results differ by their own rounding (1.1e-3 RMS).
TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {
        "forward": 2e-14,
        "backward": 1e-13,
        "tangent": 1e-13,
        "backward_tangent": 1e-13,
    },
    torch.float32: {
        "forward": 2e-6,
        "backward": 4e-6,
        "tangent": 4e-6,
        "backward_tangent": 1e-5,
    },
    torch.bfloat16: {
        "forward": 2.5e-3,
        "backward": 2.5e-3,
        "tangent": 2.5e-3,
        "backward_tangent": 2.5e-3,
    },
}


def relative_error(got: Tensor, want: Tensor) -> float:
    """RMS(got - want) / RMS(want); RMS(got) where ``want`` is zero; infinite where one is NaN."""
    if got.numel() == 0:
        return 0.0
    got, want = got.double().cpu(), want.double().cpu()
    scale = want.square().mean().sqrt()
    error = (got - want).square().mean().sqrt()
    if scale > 0:
        error = error / scale
    return float(error.nan_to_num(nan=float("inf")))


def assert_close(
    got: Tensor | None, want: Tensor | None, order: str, slack: float = 1, name: str = ""
) -> None:
    """One tensor of a backend against the reference, which must be None in the same places.

    ``slack`` multiplies the table's number where a test can say what else is lost.
    """
    if got is None or want is None:
        assert got is None and want is None, f"{name}: got {got}, want {want}"
        return
    assert got.shape == want.shape, f"{name}: got {tuple(got.shape)}, want {tuple(want.shape)}"
    error, most = relative_error(got, want), TOLERANCES[got.dtype][order] * slack
    assert error <= most, f"{name} ({order}): error {error:.2e}, at most {most:.1e} is allowed"
