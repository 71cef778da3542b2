"""Mean softmax cross-entropy with its gradient and both tangents: the definition.

With p = softmax(logits), log p its logarithm, and the targets ``t`` that the labels stand for::

    L = - sum_nc t_nc log p_nc
    t_nc = u_c y_nc / N                          soft labels y [N, C]
    t_nc = u_c [y_n = c] / sum_n u_{y_n}         hard labels y [N]

u are the class weights (1 without). This is ``F.cross_entropy(logits, labels, weight=u)``.
bfloat16 and float16 are storage: the arithmetic, and the loss, are float32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from iadd_fast.reference.precision import widened, widened_or_none


def softmax_cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """``L`` of logits ``[N, C]``, a scalar."""
    return F.cross_entropy(widened(logits), widened(labels), widened_or_none(class_weights))


def softmax_cross_entropy_backward(
    logits: Tensor, labels: Tensor, dloss: Tensor, class_weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """``dloss`` times the gradients of L for the logits and for soft labels ::

    dlogits_nc = p_nc T_n - t_nc,  T_n = sum_c t_nc;   dlabels_nc = -u_c log p_nc / N
    """
    log_p, targets, label_scale = _parts(logits, labels, class_weights)
    dlogits = log_p.exp() * targets.sum(1, keepdim=True) - targets
    dlogits = (dloss * dlogits).to(logits.dtype)
    if not labels.is_floating_point():
        return dlogits, None
    return dlogits, (-dloss * label_scale * log_p).to(labels.dtype)


def softmax_cross_entropy_tangent(
    logits: Tensor,
    labels: Tensor,
    logitsdot: Tensor,
    labelsdot: Tensor | None,
    class_weights: Tensor | None,
) -> Tensor:
    """The derivative of L along (logitsdot, labelsdot); missing labelsdot is zero ::

    (log p)dot = logitsdot - sum_c p_nc logitsdot_nc
    Ldot = - sum_nc (tdot_nc log p_nc + t_nc (log p)dot_nc)
    """
    log_p, targets, label_scale = _parts(logits, labels, class_weights)
    log_p_dot = _log_p_tangent(log_p, widened(logitsdot))
    total = (targets * log_p_dot).sum()
    if labelsdot is not None:
        total = total + (label_scale * widened(labelsdot) * log_p).sum()
    return -total


def softmax_cross_entropy_backward_tangent(
    logits: Tensor,
    labels: Tensor,
    dloss: Tensor,
    logitsdot: Tensor,
    labelsdot: Tensor | None,
    dlossdot: Tensor | None,
    class_weights: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The derivative of the gradients along (logitsdot, labelsdot, dlossdot); missing is zero ::

    pdot = p (log p)dot
    dlogitsdot = dloss (pdot T + p Tdot - tdot) + dlossdot (p T - t)
    dlabelsdot = -(u / N) (dloss (log p)dot + dlossdot log p)
    """
    log_p, targets, label_scale = _parts(logits, labels, class_weights)
    log_p_dot = _log_p_tangent(log_p, widened(logitsdot))
    p, mass = log_p.exp(), targets.sum(1, keepdim=True)
    dlogitsdot = dloss * p * log_p_dot * mass
    if labelsdot is not None:
        targetsdot = label_scale * widened(labelsdot)
        dlogitsdot = dlogitsdot + dloss * (p * targetsdot.sum(1, keepdim=True) - targetsdot)
    dlabelsdot = dloss * log_p_dot
    if dlossdot is not None:
        dlogitsdot = dlogitsdot + dlossdot * (p * mass - targets)
        dlabelsdot = dlabelsdot + dlossdot * log_p
    dlogitsdot = dlogitsdot.to(logits.dtype)
    if not labels.is_floating_point():
        return dlogitsdot, None
    return dlogitsdot, (-label_scale * dlabelsdot).to(labels.dtype)


def _parts(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``log p``, the targets ``t`` and (for soft labels) the factor ``u / N`` from y to t."""
    log_p = widened(logits).log_softmax(1)
    count, classes = logits.shape
    weights = widened_or_none(class_weights)
    if weights is None:
        weights = log_p.new_ones(classes)
    if labels.is_floating_point():
        label_scale = weights / count
        return log_p, label_scale * widened(labels), label_scale
    chosen = weights * F.one_hot(labels, classes).to(log_p.dtype)
    return log_p, chosen / chosen.sum(), weights


def _log_p_tangent(log_p: Tensor, logitsdot: Tensor) -> Tensor:
    return logitsdot - (log_p.exp() * logitsdot).sum(1, keepdim=True)
