"""Real test samples that full-data networks get right and distilled ones get wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iadd_fast.audit.outputs import Outputs, log_probabilities
from iadd_fast.audit.slices import Slice

#: A sample is nearly always right from this share of the networks, nearly never up to 1 minus it.
NEARLY = 0.8
#: Samples described one by one, at most.
SHOWN = 24
#: False discovery rate below which a group is said to be over-represented.
RATE = 0.05


def rare_cases(
    outputs: Mapping[str, Outputs], slices: Sequence[Slice], class_names: Sequence[str]
) -> dict[str, Any]:
    """What is lost sample by sample.

    ``indices``: test samples that at least ``NEARLY`` of the full-data networks and at most ``1 -
    NEARLY`` of the distilled ones get right, ordered by how much more probability the former give
    to the label (mean over networks), largest first; the first ``SHOWN`` of them described in
    ``samples``. ``opposite``: how many samples it is the other way round for. ``lost_by_random``:
    the same count for networks trained on random real samples of the same number, for scale.

    ``common``: groups of ``slices`` that hold more of these samples than chance would give, among
    all samples that nearly all full-data networks get right: one-sided hypergeometric test, with
    Benjamini and Hochberg's (1995) ``q`` over all groups at most ``RATE``. ``tested``: how many
    groups there were.

    Args:
        outputs: of ``"full"``, ``"distilled"`` and ``"random"``. slices: groups to look in.
        class_names: one for each class.
    """
    full, distilled = outputs["full"], outputs["distilled"]
    labels = full.labels
    shares = {name: one.right.mean(axis=0) for name, one in outputs.items()}
    easy = shares["full"] >= NEARLY - 1e-9
    hard = 1.0 - NEARLY + 1e-9
    rare = easy & (shares["distilled"] <= hard)
    sure = {name: _of_label(outputs[name]) for name in ("full", "distilled")}
    apart = sure["full"] - sure["distilled"]
    indices = np.flatnonzero(rare)
    indices = indices[np.argsort(-apart[indices], kind="stable")]
    known = np.bincount(labels[easy], minlength=len(class_names))
    lost = np.bincount(labels[rare], minlength=len(class_names))
    return {
        "nearly": NEARLY,
        "count": len(indices),
        "full_right": int(easy.sum()),
        "opposite": int(((shares["full"] <= hard) & (shares["distilled"] >= NEARLY - 1e-9)).sum()),
        "lost_by_random": int((easy & (shares["random"] <= hard)).sum()),
        "by_class": [
            {"class": class_names[c], "count": int(lost[c]), "of": int(known[c])}
            for c in np.argsort(-lost, kind="stable")
            if known[c] > 0
        ],
        "indices": indices.tolist(),
        "samples": [
            {
                "index": int(index),
                "label": class_names[labels[index]],
                **_prediction(distilled, int(index), class_names),
                "full_right": int(full.right[:, index].sum()),
                "full_networks": full.networks,
                "full_probability": float(sure["full"][index]),
                "distilled_probability": float(sure["distilled"][index]),
            }
            for index in indices[:SHOWN]
        ],
        **over_represented(slices, rare, easy),
    }


def over_represented(
    slices: Sequence[Slice], chosen: NDArray[np.bool_], among: NDArray[np.bool_]
) -> dict[str, Any]:
    """``common`` and ``tested`` of :func:`rare_cases` for ``chosen`` samples out of ``among``."""
    from scipy import stats

    total, hits = int(among.sum()), int(chosen.sum())
    rows: list[dict[str, Any]] = []
    for one in slices:
        for place, group in enumerate(one.groups):
            members = one.members == place
            size, count = int((members & among).sum()), int((members & chosen).sum())
            if not 0 < size < total:
                continue
            p = float(stats.hypergeom.sf(count - 1, total, size, hits))
            rows.append(
                {
                    "slice": one.name,
                    "group": group,
                    "count": count,
                    "expected": hits * size / total,
                    "p_value": p,
                }
            )
    for row, q in zip(rows, benjamini_hochberg([row["p_value"] for row in rows]), strict=True):
        row["q"] = q
    found = sorted((row for row in rows if row["q"] <= RATE), key=lambda row: float(row["p_value"]))
    return {"common": found, "tested": len(rows)}


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """False discovery rates at which each is found: ``q_(i) = min over j >= i of m p_(j) / j``."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q.tolist()


def _of_label(outputs: Outputs) -> NDArray[np.float64]:
    """Probability of the label, mean over networks: ``[N]``."""
    chances = log_probabilities(outputs.logits)
    rows = np.arange(len(outputs.labels))
    result: NDArray[np.float64] = np.exp(chances[:, rows, outputs.labels]).mean(axis=0)
    return result


def _prediction(outputs: Outputs, index: int, class_names: Sequence[str]) -> dict[str, Any]:
    """What most networks predict for one sample, and how many of them."""
    counts = np.bincount(outputs.predictions[:, index], minlength=len(class_names))
    return {
        "predicted": class_names[int(counts.argmax())],
        "predicted_by": int(counts.max()),
        "distilled_networks": outputs.networks,
    }
