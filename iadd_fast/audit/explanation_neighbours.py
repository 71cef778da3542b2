"""The real training samples nearest to each synthetic one, in two spaces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iadd_fast.audit.features import features
from iadd_fast.audit.material import Material
from iadd_fast.audit.neighbours import nearest
from iadd_fast.audit.rates import share_interval
from iadd_fast.evaluation import FULL


def nearest_real(material: Material, count: int = 5) -> dict[str, Any]:
    """The ``count`` nearest training samples of each synthetic one, JSON-able.

    Euclidean distances, as they are, in two spaces: ``pixels``, the values of the set's transform;
    ``features``, the input of the last linear layer of the first network trained on all real data.

    Returns:
        ``samples``: one entry each, with its ``label`` (of soft labels the largest) and for each
        space ``index`` (place in the training part), ``label``, ``distance`` and ``same_class``,
        nearest first. ``spaces``: how many samples have a nearest real one of their own class, with
        an interval of 95 % over samples, the share among all ``count``, and ``by_chance``: the
        share that real samples drawn at random would have.

    Costs ``2 n N d`` operations in each space and one forward pass over the training part.
    """
    synthetic, real = material.distilled.images.to(material.device), material.train
    labels = material.distilled.labels
    own = (labels.argmax(1) if labels.is_floating_point() else labels).cpu()
    count = min(count, len(real))
    full = material.trained[FULL]
    pairs = {
        "pixels": (synthetic.flatten(1), real.images.flatten(1)),
        "features": (
            features(full.student, full.thetas[0], synthetic),
            features(full.student, full.thetas[0], real.images),
        ),
    }
    known = real.labels.cpu()
    frequency = torch.bincount(known, minlength=material.distilled.num_classes) / len(known)
    samples: list[dict[str, Any]] = [
        {"sample": i, "label": int(label)} for i, label in enumerate(own)
    ]
    spaces = {}
    for name, (queries, records) in pairs.items():
        distances, indices = nearest(queries, records, count)
        found = known[indices.cpu()]
        same = found == own[:, None]
        for i, sample in enumerate(samples):
            sample[name] = _entry(distances[i], indices[i], found[i], same[i])
        first = int(same[:, 0].sum())
        low, high = share_interval(first / len(own), len(own))
        spaces[name] = {
            "nearest_same_class": first,
            "of": len(own),
            "low": low,
            "high": high,
            "share_of_all": float(same.double().mean()),
            "by_chance": float(frequency[own].double().mean()),
        }
    return {"count": count, "among": len(real), "spaces": spaces, "samples": samples}


def _entry(distances: Tensor, indices: Tensor, labels: Tensor, same: Tensor) -> dict[str, Any]:
    return {
        "index": indices.tolist(),
        "label": labels.tolist(),
        "distance": [float(f"{value:.6g}") for value in distances.tolist()],
        "same_class": same.tolist(),
    }
