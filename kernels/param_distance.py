"""Triton: importance-weighted, normalised squared distance and its gradients.

Two launches. The first leaves one partial sum per program, the second adds the partials in the same
order in every program and writes the gradients: no atomics, so a result depends on its inputs only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from iadd_fast.kernels.launch import launch

BLOCK = 1024
# Enough programs to fill a large GPU, few enough to add their partials in one step.
MOST_PROGRAMS = 1024


@triton.jit
def param_distance_partials_kernel(
    theta_ptr,  # [P]
    start_ptr,  # [P]
    target_ptr,  # [P]
    weight_ptr,  # [P] or None
    partials_ptr,  # float64 [2, programs]: numerators, then denominators
    size,  # P
    WEIGHTED_NORMALISER: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,  # blocks of a program, at least enough for P
):
    # Reads 3 or 4 P. Squares and their sum over a block are float32, as every element's arithmetic
    # is; float64 takes over where the number of terms grows with P.
    program, programs = tl.program_id(0), tl.num_programs(0)
    numerator = tl.zeros((), tl.float64)
    denominator = tl.zeros((), tl.float64)
    for step in range(STEPS):
        block = program.to(tl.int64) + step * programs
        place = block * BLOCK + tl.arange(0, BLOCK)
        inside = place < size
        target = tl.load(target_ptr + place, inside, 0.0).to(tl.float32)
        difference = tl.load(theta_ptr + place, inside, 0.0).to(tl.float32) - target
        span = tl.load(start_ptr + place, inside, 0.0).to(tl.float32) - target
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + place, inside, 0.0).to(tl.float32)
            difference *= weight
            if WEIGHTED_NORMALISER:
                span *= weight
        numerator += tl.sum(difference * difference, 0).to(tl.float64)
        denominator += tl.sum(span * span, 0).to(tl.float64)
    tl.store(partials_ptr + program, numerator)
    tl.store(partials_ptr + programs + program, denominator)


@triton.jit
def param_distance_gradients_kernel(
    theta_ptr,  # [P]
    start_ptr,  # [P]
    target_ptr,  # [P]
    weight_ptr,  # [P] or None
    partials_ptr,  # float64 [2, partials]
    loss_ptr,  # scalar, written by program 0
    d_theta_ptr,  # [P], or None for the loss alone
    d_weight_ptr,  # [P] or None
    size,  # P
    partials,
    WEIGHTED_NORMALISER: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    # Reads 2 to 4 P and writes P or 2 P; the partials come out of the cache.
    program = tl.program_id(0)
    part = tl.arange(0, BLOCK_PARTIALS)
    numerator = tl.sum(tl.load(partials_ptr + part, part < partials, 0.0), 0)
    denominator = tl.sum(tl.load(partials_ptr + partials + part, part < partials, 0.0), 0)
    loss = (numerator / denominator).to(tl.float32)
    if program == 0:
        tl.store(loss_ptr, loss)
    if d_theta_ptr is not None:
        factor = (2.0 / denominator).to(tl.float32)
        place = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = place < size
        target = tl.load(target_ptr + place, inside, 0.0).to(tl.float32)
        difference = tl.load(theta_ptr + place, inside, 0.0).to(tl.float32) - target
        if weight_ptr is None:
            tl.store(d_theta_ptr + place, factor * difference, inside)
        else:
            weight = tl.load(weight_ptr + place, inside, 0.0).to(tl.float32)
            scaled = weight * difference
            d_weight = scaled * difference
            if WEIGHTED_NORMALISER:
                span = tl.load(start_ptr + place, inside, 0.0).to(tl.float32) - target
                d_weight -= loss * (weight * span) * span
            tl.store(d_theta_ptr + place, factor * weight * scaled, inside)
            tl.store(d_weight_ptr + place, factor * d_weight, inside)


def param_distance(
    theta: Tensor, start: Tensor, target: Tensor, weight: Tensor | None, weighted_normaliser: bool
) -> Tensor:
    """As ``reference.param_distance.param_distance``, with float32 arithmetic."""
    loss, _, _ = _distance(theta, start, target, weight, weighted_normaliser, gradients=False)
    return loss


def param_distance_gradients(
    theta: Tensor, start: Tensor, target: Tensor, weight: Tensor | None, weighted_normaliser: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As ``reference.param_distance.param_distance_gradients``, with float32 arithmetic."""
    loss, d_theta, d_weight = _distance(
        theta, start, target, weight, weighted_normaliser, gradients=True
    )
    assert d_theta is not None
    return loss, d_theta, d_weight


def _distance(
    theta: Tensor,
    start: Tensor,
    target: Tensor,
    weight: Tensor | None,
    weighted_normaliser: bool,
    gradients: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    theta, start, target = theta.contiguous(), start.contiguous(), target.contiguous()
    weight = None if weight is None else weight.contiguous()
    blocks = triton.cdiv(theta.numel(), BLOCK)
    programs = min(max(blocks, 1), MOST_PROGRAMS)
    partials = torch.empty((2, programs), dtype=torch.float64, device=theta.device)
    launch(
        param_distance_partials_kernel,
        (programs,),
        theta,
        theta,
        start,
        target,
        weight,
        partials,
        theta.numel(),
        WEIGHTED_NORMALISER=weighted_normaliser,
        BLOCK=BLOCK,
        STEPS=triton.next_power_of_2(triton.cdiv(blocks, programs)),
        num_warps=4,
    )
    loss = torch.empty((), dtype=torch.float32, device=theta.device)
    d_theta = d_weight = None
    if gradients:
        # Not `empty_like`: of forward mode's zeros that is another tensor without memory.
        d_theta = torch.empty(theta.shape, dtype=theta.dtype, device=theta.device)
        d_weight = None if weight is None else torch.empty_like(d_theta)
    launch(
        param_distance_gradients_kernel,
        (max(blocks, 1) if gradients else 1,),
        theta,
        theta,
        start,
        target,
        weight,
        partials,
        loss,
        d_theta,
        d_weight,
        theta.numel(),
        programs,
        WEIGHTED_NORMALISER=weighted_normaliser,
        BLOCK=BLOCK,
        BLOCK_PARTIALS=triton.next_power_of_2(programs),
        num_warps=4,
    )
    return loss, d_theta, d_weight
