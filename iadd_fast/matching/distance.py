"""The distance of two gradients: by output channel, one minus their cosine (DC, 2006.05929).

As in ``match_loss`` with ``dis_metric='ours'`` of VICO-UoE/DatasetCondensation (``utils.py``)::

    D(g, r) = sum_rows 1 - <g_row, r_row> / (|g_row| |r_row| + 1e-6)

A parameter of two or more dimensions is cut into rows along its first one, the output channels of
a convolution or a linear layer; parameters of one dimension (biases, scale and shift of a norm)
count nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iadd_fast.students import Student

EPSILON = 1e-6


def matching_distance(student: Student, gradient: Tensor, real: Tensor) -> Tensor:
    """D(``gradient``, ``real``) of two flat gradients ``[P]``: a scalar, by autograd's operators.

    Differentiable to any order where no row of either is zero; a zero row's norm has gradient 0.
    """
    total = gradient.new_zeros(())
    for g, r in zip(_rows(student, gradient), _rows(student, real), strict=True):
        cosine = (g * r).sum(1) / (g.norm(dim=1) * r.norm(dim=1) + EPSILON)
        total = total + (1 - cosine).sum()
    return total


@torch.no_grad()
def matching_distance_gradient(
    student: Student, gradient: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """D and dD/d ``gradient`` ``[P]``, in closed form.

    With ``q = |g| |r| + 1e-6`` a row of it is ``<g, r> |r| / (q^2 |g|) g - r / q``, where the first
    term is 0 for ``g = 0``; the entries of parameters of one dimension are 0.
    """
    total = gradient.new_zeros(())
    result = torch.zeros_like(gradient)
    parts = [_rows(student, flat) for flat in (gradient, real, result)]
    for g, r, into in zip(*parts, strict=True):
        length, other = g.norm(dim=1, keepdim=True), r.norm(dim=1, keepdim=True)
        product = (g * r).sum(1, keepdim=True)
        q = length * other + EPSILON
        total += (1 - product / q).sum()
        along = torch.where(length > 0, product * other / (q * q * length), 0.0)
        torch.addcmul(-r / q, along, g, out=into)
    return total, result


def _rows(student: Student, flat: Tensor) -> list[Tensor]:
    """Views ``[rows, numbers]`` of the parameters that count."""
    return [
        flat[part.start : part.stop].view(part.shape[0], -1)
        for part in student.parameters
        if len(part.shape) > 1
    ]
