"""``softmax_cross_entropy`` compiled; the formulas stand in the reference of the same name."""

from __future__ import annotations

import torch
from torch import Tensor

from iadd_fast.native.library import laid_out, laid_out_or_none, operators


def softmax_cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    loss = torch.empty((), dtype=logits.dtype, device=logits.device)
    operators().softmax_cross_entropy.default(
        laid_out(logits), laid_out(labels), laid_out_or_none(class_weights), loss
    )
    return loss


def softmax_cross_entropy_backward(
    logits: Tensor, labels: Tensor, dloss: Tensor, class_weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    dlogits, dlabels = _outputs(logits, labels)
    operators().softmax_cross_entropy_backward.default(
        laid_out(logits),
        laid_out(labels),
        laid_out(dloss),
        laid_out_or_none(class_weights),
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
        laid_out(logits),
        laid_out(labels),
        laid_out(logitsdot),
        laid_out_or_none(labelsdot),
        laid_out_or_none(class_weights),
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
        laid_out(logits),
        laid_out(labels),
        laid_out(dloss),
        laid_out(logitsdot),
        laid_out_or_none(labelsdot),
        laid_out_or_none(dlossdot),
        laid_out_or_none(class_weights),
        dlogitsdot,
        dlabelsdot,
    )
    return dlogitsdot, dlabelsdot


def _outputs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    return dlogits, torch.empty_like(dlogits) if labels.is_floating_point() else None
