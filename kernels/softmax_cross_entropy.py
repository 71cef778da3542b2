"""Triton: mean softmax cross-entropy with its gradient and both tangents, hard or soft labels.

The targets t of the definition (``reference/softmax_cross_entropy.py``) are kept as ``weight * y``
over one divisor: u_c y_nc over N for soft labels, u_c [y_n = c] over sum_n u_{y_n} for hard ones. A
hard label that is no class makes its target NaN, and with it the loss and the gradients: nothing is
read out of bounds and nothing is silently left out.

A row of up to ``MOST_CLASSES`` classes is read once and stays in registers; a longer one is walked
in chunks, once for its maximum, once for its sums, once for the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from iadd_fast.kernels.launch import launch

# Elements of a program's block, and the row that still goes through in one piece.
TILE, MOST_CLASSES = 1024, 2048
# What one program sums up alone; above it, programs leave partial sums for a second launch.
ALONE, MOST_PROGRAMS = 2**16, 1024


@triton.jit
def softmax_cross_entropy_loss_kernel(
    logits_ptr,  # [N, C]
    labels_ptr,  # int64 [N] or floating point [N, C]
    weights_ptr,  # class weights [C] or None
    logitsdot_ptr,  # [N, C] for the tangent of the loss, None for the loss
    labelsdot_ptr,  # [N, C] or None
    loss_ptr,  # out: float32 scalar, written where this is the only program
    partials_ptr,  # out: float64 [2, programs]: sums and divisors; None for one program
    N,
    C,
    HARD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    STEPS: tl.constexpr,  # row blocks of a program, at least enough for N
):
    # Reads the logits and, if soft, the labels once (the tangent: their tangents too).
    program, programs = tl.program_id(0), tl.num_programs(0)
    total = tl.zeros((), tl.float64)
    divisor = tl.zeros((), tl.float64)
    for step in range(STEPS):
        row = (program + step * programs) * ROWS + tl.arange(0, ROWS)
        top, log_sum, drift = _row(logits_ptr, logitsdot_ptr, row, N, C, BLOCK, CHUNKS)
        label = _label(labels_ptr, row, N, HARD)
        lost = tl.zeros((ROWS,), tl.float32)
        for chunk in range(CHUNKS):
            column = chunk * BLOCK + tl.arange(0, BLOCK)
            logit = _load(logits_ptr, row, column, N, C, 0.0)
            log_p = (logit - top) - log_sum
            weight = _weights(weights_ptr, column, C)
            target = _targets(labels_ptr, label, weight, row, column, N, C, HARD)
            if logitsdot_ptr is None:
                change = target * log_p
            else:
                change = target * (_load(logitsdot_ptr, row, column, N, C, 0.0) - drift)
                if labelsdot_ptr is not None:
                    change += weight * _load(labelsdot_ptr, row, column, N, C, 0.0) * log_p
            if HARD:
                # Only the chosen class counts: a class of probability zero must not give 0 x inf.
                change = tl.where(column[None, :] == label, change, 0.0)
            lost -= tl.sum(tl.where(_inside(row, column, N, C), change, 0.0), 1)
        if HARD:
            chosen = _chosen_weight(weights_ptr, label, row, N, C)
            lost = tl.where(chosen == chosen, lost, float("nan"))
            divisor += tl.sum(chosen.to(tl.float64), 0)
        total += tl.sum(lost.to(tl.float64), 0)
    if not HARD:
        divisor = tl.full((), N, tl.float64) / programs
    if partials_ptr is None:
        tl.store(loss_ptr, (total / divisor).to(tl.float32))
    else:
        tl.store(partials_ptr + program, total)
        tl.store(partials_ptr + programs + program, divisor)


@triton.jit
def softmax_cross_entropy_total_kernel(
    partials_ptr,  # float64 [2, partials]
    loss_ptr,  # out: float32 scalar
    partials,
    BLOCK: tl.constexpr,
):
    part = tl.arange(0, BLOCK)
    total = tl.sum(tl.load(partials_ptr + part, part < partials, 0.0), 0)
    divisor = tl.sum(tl.load(partials_ptr + partials + part, part < partials, 0.0), 0)
    tl.store(loss_ptr, (total / divisor).to(tl.float32))


@triton.jit
def softmax_cross_entropy_backward_kernel(
    logits_ptr,  # [N, C]
    labels_ptr,  # int64 [N] or floating point [N, C]
    weights_ptr,  # class weights [C] or None
    dloss_ptr,  # scalar
    logitsdot_ptr,  # [N, C] for the tangent of the gradients, None for the gradients
    labelsdot_ptr,  # [N, C] or None
    dlossdot_ptr,  # scalar or None
    dlogits_ptr,  # out: [N, C]; the tangent of the gradient where logitsdot is given
    dlabels_ptr,  # out: [N, C], likewise; None with hard labels
    N,
    C,
    HARD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    LABEL_BLOCK: tl.constexpr,
    LABEL_STEPS: tl.constexpr,  # blocks of labels, at least enough for N
):
    # Reads what the loss reads and writes one tensor of logits (with soft labels two).
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dloss = tl.load(dloss_ptr).to(tl.float32)
    scale = 1.0 / _divisor(labels_ptr, weights_ptr, N, C, HARD, LABEL_BLOCK, LABEL_STEPS)
    top, log_sum, drift = _row(logits_ptr, logitsdot_ptr, row, N, C, BLOCK, CHUNKS)
    label = _label(labels_ptr, row, N, HARD)
    # T of the definition, and its tangent.
    mass = tl.zeros((ROWS, 1), tl.float32)
    massdot = tl.zeros((ROWS, 1), tl.float32)
    if HARD:
        mass = _chosen_weight(weights_ptr, label, row, N, C)[:, None]
    else:
        for chunk in range(CHUNKS):
            column = chunk * BLOCK + tl.arange(0, BLOCK)
            weight = _weights(weights_ptr, column, C)
            mass += tl.sum(weight * _load(labels_ptr, row, column, N, C, 0.0), 1)[:, None]
            if labelsdot_ptr is not None:
                turn = weight * _load(labelsdot_ptr, row, column, N, C, 0.0)
                massdot += tl.sum(turn, 1)[:, None]
    for chunk in range(CHUNKS):
        column = chunk * BLOCK + tl.arange(0, BLOCK)
        place = row.to(tl.int64)[:, None] * C + column[None, :]
        inside = _inside(row, column, N, C)
        log_p = (_load(logits_ptr, row, column, N, C, 0.0) - top) - log_sum
        p = tl.exp(log_p)
        weight = _weights(weights_ptr, column, C)
        target = _targets(labels_ptr, label, weight, row, column, N, C, HARD)
        if logitsdot_ptr is None:
            d_logits = dloss * (scale * (p * mass - target))
            d_labels = dloss * log_p
        else:
            log_p_dot = _load(logitsdot_ptr, row, column, N, C, 0.0) - drift
            d_logits = p * log_p_dot * mass
            if labelsdot_ptr is not None:
                turn = weight * _load(labelsdot_ptr, row, column, N, C, 0.0)
                d_logits += p * massdot - turn
            d_logits = dloss * (scale * d_logits)
            d_labels = dloss * log_p_dot
            if dlossdot_ptr is not None:
                dlossdot = tl.load(dlossdot_ptr).to(tl.float32)
                d_logits += dlossdot * (scale * (p * mass - target))
                d_labels += dlossdot * log_p
        tl.store(dlogits_ptr + place, d_logits, inside)
        if dlabels_ptr is not None:
            tl.store(dlabels_ptr + place, -(scale * weight) * d_labels, inside)


@triton.jit
def _inside(row, column, N, C):
    return (row < N)[:, None] & (column < C)[None, :]


@triton.jit
def _load(matrix_ptr, row, column, N, C, other):
    place = row.to(tl.int64)[:, None] * C + column[None, :]
    return tl.load(matrix_ptr + place, _inside(row, column, N, C), other).to(tl.float32)


@triton.jit
def _row(logits_ptr, logitsdot_ptr, row, N, C, BLOCK: tl.constexpr, CHUNKS: tl.constexpr):
    """Per row ``[ROWS, 1]``: the maximum, log sum exp past it, and sum_c p_c logitsdot_c."""
    top = tl.full((row.shape[0], 1), float("-inf"), tl.float32)
    for chunk in range(CHUNKS):
        column = chunk * BLOCK + tl.arange(0, BLOCK)
        logit = _load(logits_ptr, row, column, N, C, float("-inf"))
        top = tl.maximum(top, tl.max(logit, 1)[:, None])
    # Rows past the end have no maximum; zero keeps them finite, and nothing of them is written.
    top = tl.where((row < N)[:, None], top, 0.0)
    total = tl.zeros((row.shape[0], 1), tl.float32)
    drift = tl.zeros((row.shape[0], 1), tl.float32)
    for chunk in range(CHUNKS):
        column = chunk * BLOCK + tl.arange(0, BLOCK)
        share = tl.exp(_load(logits_ptr, row, column, N, C, float("-inf")) - top)
        total += tl.sum(share, 1)[:, None]
        if logitsdot_ptr is not None:
            dot = _load(logitsdot_ptr, row, column, N, C, 0.0)
            drift += tl.sum(share * dot, 1)[:, None]
    total = tl.where((row < N)[:, None], total, 1.0)
    return top, tl.log(total), drift / total


@triton.jit
def _weights(weights_ptr, column, C):
    """Class weights of the columns ``[1, BLOCK]``, 1 without."""
    if weights_ptr is None:
        return tl.full((1, column.shape[0]), 1.0, tl.float32)
    else:
        return tl.load(weights_ptr + column, column < C, 0.0).to(tl.float32)[None, :]


@triton.jit
def _label(labels_ptr, row, N, HARD: tl.constexpr):
    """Hard labels ``[ROWS, 1]``; with soft ones there is nothing to say."""
    if HARD:
        return tl.load(labels_ptr + row, row < N, 0)[:, None]
    else:
        return row[:, None]


@triton.jit
def _chosen_weight(weights_ptr, label, row, N, C):
    """``[ROWS]``: the weight of each row's label; NaN where that is no class, 0 past the end."""
    known = (label >= 0) & (label < C)
    if weights_ptr is None:
        weight = tl.full(label.shape, 1.0, tl.float32)
    else:
        weight = tl.load(weights_ptr + label, known, 0.0).to(tl.float32)
    weight = tl.where(known, weight, float("nan"))
    return tl.reshape(tl.where((row < N)[:, None], weight, 0.0), row.shape)


@triton.jit
def _targets(labels_ptr, label, weight, row, column, N, C, HARD: tl.constexpr):
    """``[ROWS, BLOCK]``: t times the divisor, where the labels are known."""
    if HARD:
        return tl.where(column[None, :] == label, weight, 0.0)
    else:
        return weight * _load(labels_ptr, row, column, N, C, 0.0)


@triton.jit
def _divisor(
    labels_ptr,
    weights_ptr,
    N,
    C,
    HARD: tl.constexpr,
    LABEL_BLOCK: tl.constexpr,
    LABEL_STEPS: tl.constexpr,
):
    """N, or the summed weight of all hard labels: every program adds them in the same order."""
    if HARD and weights_ptr is not None:
        total = tl.zeros((), tl.float64)
        for step in range(LABEL_STEPS):
            row = step * LABEL_BLOCK + tl.arange(0, LABEL_BLOCK)
            label = _label(labels_ptr, row, N, HARD)
            chosen = _chosen_weight(weights_ptr, label, row, N, C)
            total += tl.sum(chosen.to(tl.float64), 0)
        return total.to(tl.float32)
    else:
        return tl.full((), N, tl.float32)


class Cut(NamedTuple):
    """How rows of C classes are cut into blocks."""

    rows: int
    block: int
    chunks: int
    row_blocks: int


def cut(logits: Tensor) -> Cut:
    """Short rows share a block; a row over ``MOST_CLASSES`` is walked in chunks."""
    count, classes = logits.shape
    block = min(triton.next_power_of_2(classes), MOST_CLASSES)
    rows = min(max(TILE // block, 1), triton.next_power_of_2(count))
    return Cut(rows, block, triton.cdiv(classes, block), triton.cdiv(count, rows))


def softmax_cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """As ``reference.softmax_cross_entropy.softmax_cross_entropy``, with float32 arithmetic."""
    return _loss(logits, labels, None, None, class_weights)


def softmax_cross_entropy_backward(
    logits: Tensor, labels: Tensor, dloss: Tensor, class_weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """As ``reference.softmax_cross_entropy.softmax_cross_entropy_backward``, in float32."""
    return _backward(logits, labels, dloss, None, None, None, class_weights)


def softmax_cross_entropy_tangent(
    logits: Tensor,
    labels: Tensor,
    logitsdot: Tensor,
    labelsdot: Tensor | None,
    class_weights: Tensor | None,
) -> Tensor:
    """As ``reference.softmax_cross_entropy.softmax_cross_entropy_tangent``, in float32."""
    return _loss(logits, labels, logitsdot, labelsdot, class_weights)


def softmax_cross_entropy_backward_tangent(
    logits: Tensor,
    labels: Tensor,
    dloss: Tensor,
    logitsdot: Tensor,
    labelsdot: Tensor | None,
    dlossdot: Tensor | None,
    class_weights: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """As ``reference.softmax_cross_entropy.softmax_cross_entropy_backward_tangent``, in float32."""
    return _backward(logits, labels, dloss, logitsdot, labelsdot, dlossdot, class_weights)


def _loss(
    logits: Tensor,
    labels: Tensor,
    logitsdot: Tensor | None,
    labelsdot: Tensor | None,
    class_weights: Tensor | None,
) -> Tensor:
    shape = cut(logits)
    alone = logits.shape[0] * shape.block * shape.chunks <= ALONE
    programs = 1 if alone else min(shape.row_blocks, MOST_PROGRAMS)
    loss = torch.empty((), dtype=torch.float32, device=logits.device)
    partials = None
    if programs > 1:
        partials = torch.empty((2, programs), dtype=torch.float64, device=logits.device)
    inputs = _contiguous(logits, labels, class_weights, logitsdot, labelsdot)
    launch(
        softmax_cross_entropy_loss_kernel,
        (programs,),
        logits,
        *inputs,
        loss,
        partials,
        *logits.shape,
        HARD=not labels.is_floating_point(),
        ROWS=shape.rows,
        BLOCK=shape.block,
        CHUNKS=shape.chunks,
        STEPS=triton.next_power_of_2(triton.cdiv(shape.row_blocks, programs)),
        num_warps=_warps(shape),
    )
    if partials is not None:
        launch(
            softmax_cross_entropy_total_kernel,
            (1,),
            logits,
            partials,
            loss,
            programs,
            BLOCK=triton.next_power_of_2(programs),
            num_warps=4,
        )
    return loss


def _backward(
    logits: Tensor,
    labels: Tensor,
    dloss: Tensor,
    logitsdot: Tensor | None,
    labelsdot: Tensor | None,
    dlossdot: Tensor | None,
    class_weights: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    shape = cut(logits)
    hard = not labels.is_floating_point()
    inputs = _contiguous(logits, labels, class_weights, dloss, logitsdot, labelsdot, dlossdot)
    d_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    d_labels = None
    if not hard:
        d_labels = torch.empty(labels.shape, dtype=labels.dtype, device=labels.device)
    launch(
        softmax_cross_entropy_backward_kernel,
        (shape.row_blocks,),
        logits,
        *inputs,
        d_logits,
        d_labels,
        *logits.shape,
        HARD=hard,
        ROWS=shape.rows,
        BLOCK=shape.block,
        CHUNKS=shape.chunks,
        LABEL_BLOCK=TILE,
        LABEL_STEPS=triton.next_power_of_2(triton.cdiv(logits.shape[0], TILE)),
        num_warps=_warps(shape),
    )
    return d_logits, d_labels


def _contiguous(*tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _warps(shape: Cut) -> int:
    return min(max(shape.rows * shape.block // 128, 1), 8)
