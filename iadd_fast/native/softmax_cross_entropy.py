"""``softmax_cross_entropy`` compiled; the formulas stand in the reference of the same name."""

from __future__ import annotations

import torch
from torch import Tensor

from iadd_fast.native.library import operators


def softmax_cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    loss = torch.empty((), dtype=logits.dtype, device=logits.device)
    operators().softmax_cross_entropy.default(
        logits.contiguous(), labels.contiguous(), _dense(class_weights), loss
    )
    return loss


def softmax_cross_entropy_backward(
    logits: Tensor, labels: Tensor, dloss: Tensor, class_weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    dlogits, dlabels = _outputs(logits, labels)
    operators().softmax_cross_entropy_backward.default(
        logits.contiguous(),
        labels.contiguous(),
        dloss,
        _dense(class_weights),
        dlogits,
        dlabels,
    )
    return dlogits, dlabels


def softmax_cross_entropy_tangent(
    logits: Tensor,
    labels: Tensor,
    logitsdot: Tensor,
    labelsdot: Tensor | None,
    class_weights: Tensor | None,
) -> Tensor:
    lossdot = torch.empty((), dtype=logits.dtype, device=logits.device)
    operators().softmax_cross_entropy_tangent.default(
        logits.contiguous(),
        labels.contiguous(),
        logitsdot.contiguous(),
        _dense(labelsdot),
        _dense(class_weights),
        lossdot,
    )
    return lossdot


def softmax_cross_entropy_backward_tangent(
    logits: Tensor,
    labels: Tensor,
    dloss: Tensor,
    logitsdot: Tensor,
    labelsdot: Tensor | None,
    dlossdot: Tensor | None,
    class_weights: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    dlogitsdot, dlabelsdot = _outputs(logits, labels)
    operators().softmax_cross_entropy_backward_tangent.default(
        logits.contiguous(),
        labels.contiguous(),
        dloss,
        logitsdot.contiguous(),
        _dense(labelsdot),
        dlossdot,
        _dense(class_weights),
        dlogitsdot,
        dlabelsdot,
    )
    return dlogitsdot, dlabelsdot


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _outputs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    return dlogits, torch.empty_like(dlogits) if labels.is_floating_point() else None
