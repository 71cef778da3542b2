"""How often networks predict the same, and whose errors are shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iadd_fast.audit.estimates import estimate
from iadd_fast.audit.outputs import Outputs

#: Classes up to which the whole table of disagreements is kept.
MATRIX_CLASSES = 20
LARGEST = 10


def agreement(outputs: Mapping[str, Outputs], class_names: Sequence[str]) -> dict[str, Any]:
    """Agreement, lost and gained samples, and where predictions part.

    ``pairs`` of networks, one of each group or two of one group (the yardstick: how far two
    networks of one training set agree): ``agreement``, the share of (pair, sample) with equal
    predictions, and Cohen's (1960) ``kappa = (agreement - c) / (1 - c)`` with c the agreement by
    chance given how often each class is predicted; its interval takes c as known. None where a
    group has one network.

    ``lost``: of the samples that a full-data network gets right, the share that a network of the
    other method gets wrong (``other_full``: that another full-data network gets wrong).
    ``gained``: of those it gets wrong, the share that the other gets right; None where it gets none
    wrong.

    ``disagreement``: samples by the prediction of a full-data network (row) and of a distilled one
    (column), mean over pairs; ``largest``: its largest entries off the diagonal, with how many of
    the samples the full-data network has right.

    Args:
        outputs: of ``"full"``, ``"distilled"`` and ``"random"``.
        class_names: one for each class.
    """
    full, distilled, random = (outputs[name] for name in ("full", "distilled", "random"))
    return {
        "pairs": {
            "full_distilled": _pair(full, distilled),
            "full_random": _pair(full, random),
            "full_full": _pair(full, None),
            "distilled_distilled": _pair(distilled, None),
            "random_random": _pair(random, None),
        },
        "lost": {
            "distilled": _lost(full, distilled),
            "random": _lost(full, random),
            "other_full": _lost(full, None),
        },
        "gained": {
            "distilled": _gained(full, distilled),
            "random": _gained(full, random),
            "other_full": _gained(full, None),
        },
        "disagreement": _disagreement(full, distilled, class_names),
    }


def _pair(one: Outputs, other: Outputs | None) -> dict[str, Any] | None:
    second = one if other is None else other
    apart = _apart(one, other)
    if not apart.any():
        return None
    same = one.predictions[:, None] == second.predictions[None]
    found = estimate(same * apart, np.broadcast_to(apart, same.shape), within=other is None)
    classes = one.logits.shape[2]
    shares = [_class_shares(o.predictions, classes) for o in (one, second)]
    chance = float((shares[0] @ shares[1].T)[apart[:, :, 0] > 0].mean())

    def kappa(value: float | None) -> float | None:
        return None if value is None or chance >= 1.0 else (value - chance) / (1.0 - chance)

    return {
        "agreement": found.to_dict(),
        "kappa": {key: kappa(getattr(found, key)) for key in ("value", "low", "high")},
        "chance": chance,
    }


def _lost(full: Outputs, other: Outputs | None) -> dict[str, Any] | None:
    second = full if other is None else other
    base = full.right[:, None] * _apart(full, other) * np.ones_like(second.right)[None]
    if not base.any():
        return None
    return estimate(base * (1.0 - second.right[None]), base, within=other is None).to_dict()


def _gained(full: Outputs, other: Outputs | None) -> dict[str, Any] | None:
    second = full if other is None else other
    base = (1.0 - full.right)[:, None] * _apart(full, other) * np.ones_like(second.right)[None]
    if not base.any():
        return None
    return estimate(base * second.right[None], base, within=other is None).to_dict()


def _apart(one: Outputs, other: Outputs | None) -> NDArray[np.float64]:
    """``[K, L, 1]``: 1 for a pair, 0 for a network with itself."""
    if other is None:
        return (1.0 - np.eye(one.networks))[:, :, None]
    return np.ones((one.networks, other.networks, 1))


def _class_shares(predictions: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """``[K, classes]``: how often each network predicts each class."""
    return np.stack([np.bincount(row, minlength=classes) / len(row) for row in predictions])


def _disagreement(full: Outputs, distilled: Outputs, class_names: Sequence[str]) -> dict[str, Any]:
    classes = len(class_names)
    pairs = full.networks * distilled.networks
    counts = np.zeros((classes, classes))
    right = np.zeros((classes, classes))
    for ours, correct in zip(full.predictions, full.right, strict=True):
        for theirs in distilled.predictions:
            cells = ours * classes + theirs
            counts += np.bincount(cells, minlength=classes**2).reshape(counts.shape) / pairs
            of_right = np.bincount(cells, weights=correct, minlength=classes**2)
            right += of_right.reshape(counts.shape) / pairs
    off = counts * (1.0 - np.eye(classes))
    largest = [
        {
            "full": class_names[row],
            "distilled": class_names[column],
            "samples": float(counts[row, column]),
            "full_right": float(right[row, column]),
        }
        for row, column in (
            divmod(int(cell), classes) for cell in np.argsort(-off, axis=None, kind="stable")
        )
        if off[row, column] > 0
    ][:LARGEST]
    return {
        "matrix": counts.tolist() if classes <= MATRIX_CLASSES else None,
        "class_names": list(class_names) if classes <= MATRIX_CLASSES else None,
        "largest": largest,
    }
