"""``param_distance``: the importance-weighted matching loss over flat parameter vectors."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from iadd_fast.reference import param_distance as reference

Normaliser = Literal["start", "weighted"]


def param_distance(
    theta: Tensor,
    start: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    normaliser: Normaliser = "start",
) -> Tensor:
    """``L = ||w (theta - target)||^2 / ||v (start - target)||^2`` (IADD, arXiv 2401.15863).

    ``normaliser="start"`` is the paper's form, v = 1 (``weight=None`` is then MTT's loss);
    ``"weighted"`` puts the weight into the denominator too, v = w. The weight multiplies the
    difference before squaring, so a squared error counts w^2 times.

    Args:
        theta, start, target: flat vectors ``[P]`` of one dtype and device.
        weight: ``[P]`` of the same dtype, or None for 1.

    Returns:
        A scalar of ``theta``'s dtype (sums accumulate in float64); infinite or NaN when the
        denominator is zero. Differentiable in all arguments, to any order.

    Raises:
        ValueError: shapes, dtypes or devices differ, or an unknown normaliser.
    """
    _check(theta, start, target, weight, normaliser)
    return reference.param_distance(theta, start, target, weight, normaliser == "weighted")


def param_distance_gradients(
    theta: Tensor,
    start: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    normaliser: Normaliser = "start",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """:func:`param_distance` with its gradients for ``theta`` and ``weight``, in closed form.

    The seed of a reverse sweep. Not differentiable itself; arguments and errors as there.
    """
    _check(theta, start, target, weight, normaliser)
    return reference.param_distance_gradients(
        theta.detach(),
        start.detach(),
        target.detach(),
        None if weight is None else weight.detach(),
        normaliser == "weighted",
    )


def _check(
    theta: Tensor, start: Tensor, target: Tensor, weight: Tensor | None, normaliser: str
) -> None:
    if normaliser not in ("start", "weighted"):
        raise ValueError(f"normaliser: got {normaliser!r}; takes 'start' or 'weighted'")
    if theta.ndim != 1 or not theta.is_floating_point():
        raise ValueError(
            f"theta: got {theta.dtype} of shape {tuple(theta.shape)}; takes a flat float vector"
        )
    for name, other in (("start", start), ("target", target), ("weight", weight)):
        if other is None:
            continue
        if (other.shape, other.dtype, other.device) != (theta.shape, theta.dtype, theta.device):
            raise ValueError(
                f"{name}: got {other.dtype} of shape {tuple(other.shape)} on {other.device}; theta "
                f"is {theta.dtype} of shape {tuple(theta.shape)} on {theta.device}"
            )
