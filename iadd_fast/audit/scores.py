"""What an attacker who holds networks sees of a record: scores, higher for members."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from iadd_fast.audit.features import logits
from iadd_fast.audit.rates import Scores
from iadd_fast.students import Student

#: Score -> what it is.
SCORES = {
    "loss": "minus the cross-entropy of the record's own label (Yeom et al. 2018)",
    "entropy": "minus the modified entropy (Song and Mittal 2021)",
    "confidence": "log(p / (1 - p)) of the label's probability (Carlini et al. 2022)",
}


def scores_of(outputs: Tensor, labels: Tensor) -> dict[str, Scores]:
    """Every score of :data:`SCORES`, ``[N]`` each, from logits ``[N, classes]``, in float64.

    Logits that are not all finite count as all 0: a network that diverged tells nothing.

    * loss: ``log p_y``.
    * entropy: ``(1 - p_y) log p_y + sum_{c != y} p_c log(1 - p_c)``.
    * confidence: ``log p_y - log(1 - p_y)``, as the label's logit less the log-sum-exp of the
      others. For one network it orders records as the loss does; its mean over networks does not.
    """
    outputs = outputs.double()
    outputs = torch.where(outputs.isfinite().all(1, keepdim=True), outputs, 0.0)
    own = labels[:, None]
    log_p = outputs.log_softmax(1)
    others = outputs.scatter(1, own, -torch.inf)
    of_label = log_p.gather(1, own)[:, 0]
    confidence = outputs.gather(1, own)[:, 0] - others.logsumexp(1)
    # log(1 - p_c) as the log-sum-exp of the other logits would cost classes^2
    rest = torch.log1p(-log_p.exp().clamp(max=1.0 - 1e-15))
    wrong = (log_p.exp() * rest).scatter(1, own, 0.0).sum(1)
    not_label = torch.sigmoid(-confidence)
    found = {
        "loss": of_label,
        "entropy": not_label * of_label + wrong,
        "confidence": confidence,
    }
    return {name: value.cpu().numpy() for name, value in found.items()}


def score_tables(
    student: Student, thetas: Tensor, parts: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, Scores]:
    """Every score ``[K, N]`` of the records of ``parts``, one after another, by each network."""
    rows: dict[str, list[Scores]] = {name: [] for name in SCORES}
    for theta in thetas:
        found = [scores_of(logits(student, theta, images), labels) for images, labels in parts]
        for name in SCORES:
            rows[name].append(np.concatenate([part[name] for part in found]))
    return {name: np.stack(values) for name, values in rows.items()}
