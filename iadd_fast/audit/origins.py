"""The real images a set was initialised from: how far it has moved away from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit.copies import Space
from iadd_fast.audit.neighbours import find, squared_distances
from iadd_fast.audit.rates import share_interval
from iadd_fast.data import Data
from iadd_fast.synthetic import initial_images


def initial_records(distilled: DistilledSet, data: Data) -> tuple[Tensor | None, str]:
    """The place in ``data.train`` of the image each sample started from: int64 ``[n]``.

    Known where the set's configuration says ``initial = "real"`` and fits ``data``: its seed and
    images per class draw the same images again (:func:`iadd_fast.synthetic.initial_images`), given
    that ``data`` was loaded with the validation part that the distillation had.

    Returns:
        The places and ``""``, or None and why they are not known.
    """
    config = distilled.config
    initial = config.get("initial")
    if initial != "real":
        told = "not recorded" if initial is None else f"{initial!r}, which are no records"
        return None, f"its first images: {told}"
    count, seed = config.get("images_per_class"), config.get("seed")
    if not isinstance(count, int) or not isinstance(seed, int):
        return None, "its configuration lacks images_per_class or seed"
    if distilled.data_fingerprint != data.fingerprint:
        return None, "it was distilled from other data than these"
    if len(distilled) != count * data.num_classes:
        return None, f"it has {len(distilled)} samples, not {count} of each class"
    try:
        images, labels = initial_images(data, count, initial, seed)
    except ValueError as error:
        return None, str(error)
    if distilled.labels.ndim == 1 and not torch.equal(distilled.labels, labels):
        return None, "its labels do not stand class by class"
    return find(images, data.train.images.cpu(), "initial images"), ""


def distance_moved(
    samples: Mapping[str, Tensor], spaces: Mapping[str, Space], records: Tensor
) -> dict[str, Any]:
    """For each sample, its own initial image among all training records.

    The rank is 1 plus the number of training records nearer to the sample than its own initial
    image; an attacker who guesses the nearest record is right where it is 1. At chance a rank is 1
    with probability 1 / N.

    Args:
        samples: space -> vectors ``[n, F]``.
        spaces: the spaces with all training records (those where only some are known are left out).
        records: what :func:`initial_records` gave.
    """
    ranked: dict[str, Any] = {}
    for name, space in spaces.items():
        if not torch.equal(space.train_index, torch.arange(len(space.train))):
            continue
        places = records.to(space.train.device)
        own = (samples[name].double() - space.train[places].double()).norm(dim=1)
        rank, others = [], []
        for rows, squared in squared_distances(samples[name], space.train):
            place = places[rows, None]
            nearer = squared < squared.gather(1, place)
            rank.append(1 + nearer.sum(1))
            others.append(squared.scatter(1, place, torch.inf).min(1).values.sqrt())
        ranks = torch.cat(rank).cpu()
        first = int((ranks == 1).sum())
        share = first / len(ranks)
        ranked[name] = {
            "of": len(space.train),
            "moved": own.tolist(),
            "nearest_other": torch.cat(others).double().tolist(),
            "rank": ranks.tolist(),
            "median_rank": float(np.median(ranks.numpy())),
            "first": first,
            "first_share": share,
            "first_interval": list(share_interval(share, len(ranks))),
            "median_moved": float(own.median()),
        }
    return {"records": records.tolist(), "spaces": ranked}
