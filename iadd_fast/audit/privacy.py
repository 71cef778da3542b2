"""What a distilled set may leak: how near it is to records, and what an attacker learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iadd_fast import seeds
from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit.copies import (
    QUANTILE,
    SPACES,
    Distances,
    Space,
    distances_to,
    histograms,
    peak_signal_to_noise,
    share_nearer_to_train,
    summary,
    yardstick,
)
from iadd_fast.audit.features import features
from iadd_fast.audit.material import Material
from iadd_fast.audit.membership import membership
from iadd_fast.audit.names import method_name
from iadd_fast.audit.neighbours import standardised
from iadd_fast.audit.origins import distance_moved, initial_records
from iadd_fast.audit.populations import unseen_test
from iadd_fast.audit.privacy_words import limits, verdict
from iadd_fast.evaluation import DISTILLED, FULL

#: Records of each part whose features are computed.
FEATURE_RECORDS = 10_000
#: Real images that stand in for synthetic ones in the control.
CONTROL = 300
#: Pairs listed even where none is flagged.
CLOSEST = 12
_PEAK_OVER = 1_000
#: Settings that may differ between two sets that are told apart by their first images only.
_FREE = ("initial", "preset")


def privacy(material: Material) -> dict[str, Any]:
    """Distances to training records, and membership inference, for the set and those beside it.

    Distances are measured in three spaces (:data:`iadd_fast.audit.copies.SPACES`): to the closest
    training record, its ratio to the second closest, and to the closest held-out (test) record. The
    yardstick is the same for held-out real images. A sample is flagged where its closest training
    record is at most as far as the closest 1 % of held-out images are from theirs, so about 1 % of
    samples are flagged where they are as near as other real images. Test records that are in
    training with the very same values are left out throughout.

    Membership inference: :func:`iadd_fast.audit.membership.membership`.

    Costs the distances of every sample and 1,000 held-out images to all records (in features:
    10,000 records of each part), and the forward passes of the two.

    Returns:
        * ``sets``: name (``"iadd"``: the set itself) -> its first images, copies and origins.
        * ``yardstick`` (space -> threshold and summaries), ``histograms``, ``control`` (validation
          images in place of synthetic ones; None without a validation part).
        * ``membership``. ``initialisation``: which sets differ in their first images only.
        * ``verdict`` and ``limits``: sentences. ``settings``.

        Places of records refer to the parts of ``material``.

    Raises:
        ValueError: fewer than two test records that are not in training as well, or networks of
            "random" that were not trained on images of this data.
    """
    unseen = unseen_test(material)
    if len(unseen) < 2:
        raise ValueError(
            f"data: got {len(unseen)} test records that are not in training as well; takes at "
            "least two to compare with"
        )
    spaces = _spaces(material, unseen)
    sets = {DISTILLED: material.distilled, **material.beside}
    vectors = {name: _vectors(material, entry.images) for name, entry in sets.items()}
    real = {name: yardstick(space, material.seed) for name, space in spaces.items()}
    found = {
        name: {space: distances_to(vectors[name][space], spaces[space]) for space in spaces}
        for name in sets
    }
    initial: dict[str, Tensor] = {}
    described = {}
    for name, distilled in sets.items():
        entry = _described(name, distilled, found[name], real, vectors[name], spaces, material)
        places, reason = initial_records(distilled, material.data)
        entry["origin"], entry["origin_reason"] = None, reason or None
        if places is not None:
            initial[name] = places
            entry["origin"] = distance_moved(vectors[name], spaces, places)
        described[name] = entry
    result: dict[str, Any] = {
        "sets": described,
        "yardstick": {
            name: {
                "threshold": _threshold(entry),
                "count": len(entry.closest),
                "records": len(spaces[name].train),
                "held_out": len(spaces[name].held),
                "closest": summary(entry.closest),
                "ratio": summary(entry.ratio),
                "between_held_out": summary(entry.held),
            }
            for name, entry in real.items()
        },
        "histograms": _histograms(found[DISTILLED], real),
        "control": _control(spaces, material),
        "membership": membership(material, initial),
        "initialisation": _initialisation(sets),
        "settings": {
            "spaces": dict(SPACES),
            "quantile": QUANTILE,
            "features_of": "the first network of the full data",
            "train": len(material.train),
            "validation": len(material.validation),
            "test": len(material.test),
            "test_in_training": len(material.test) - len(unseen),
            "networks": {name: len(t.thetas) for name, t in material.trained.items()},
            "seed": material.seed,
        },
    }
    result["verdict"] = verdict(result)
    result["limits"] = limits(result)
    return result


def _vectors(material: Material, images: Tensor) -> dict[str, Tensor]:
    images = images.to(material.train.images)
    flat = images.flatten(1)
    full = material.trained[FULL]
    return {
        "pixels": flat,
        "correlation": standardised(flat),
        "features": features(full.student, full.thetas[0], images),
    }


def _spaces(material: Material, unseen: Tensor) -> dict[str, Space]:
    train, held = material.train, material.test.subset(unseen)
    result = {}
    pixels = train.images.flatten(1), held.images.flatten(1)
    every = torch.arange(len(train))
    for name, pair in (
        ("pixels", pixels),
        ("correlation", (standardised(pixels[0]), standardised(pixels[1]))),
    ):
        result[name] = Space(name, *pair, train.labels, held.labels, every)
    full = material.trained[FULL]
    drawn = {}
    for part, split in (("train", train), ("held", held)):
        draw = seeds.generator(material.seed, "features", part)
        drawn[part] = torch.randperm(len(split), generator=draw)[:FEATURE_RECORDS].sort().values
    few = train.subset(drawn["train"]), held.subset(drawn["held"])
    pair = (
        features(full.student, full.thetas[0], few[0].images),
        features(full.student, full.thetas[0], few[1].images),
    )
    result["features"] = Space("features", *pair, few[0].labels, few[1].labels, drawn["train"])
    return result


def _threshold(real: Distances) -> float:
    return float(np.quantile(real.closest, QUANTILE, method="lower"))


def _described(
    name: str,
    distilled: DistilledSet,
    found: Mapping[str, Distances],
    real: Mapping[str, Distances],
    vectors: Mapping[str, Tensor],
    spaces: Mapping[str, Space],
    material: Material,
) -> dict[str, Any]:
    from scipy import stats

    thresholds = {space: _threshold(entry) for space, entry in real.items()}
    per_space = {}
    for space, entry in found.items():
        flagged = int((entry.closest <= thresholds[space]).sum())
        per_space[space] = {
            "closest": summary(entry.closest),
            "ratio": summary(entry.ratio),
            "held_out": summary(entry.held),
            "flagged": flagged,
            "flagged_expected": QUANTILE * len(distilled),
            "flagged_by_chance": float(stats.binom.sf(flagged - 1, len(distilled), QUANTILE)),
            "share_nearer_to_train": share_nearer_to_train(
                vectors[space], spaces[space], seeds.derive(material.seed, name, space)
            ),
            "samples": {
                "closest": entry.closest.tolist(),
                "record": entry.record.tolist(),
                "ratio": entry.ratio.tolist(),
                "held_out": entry.held.tolist(),
            },
        }
    flagged_any = {
        index
        for space, entry in found.items()
        for index in np.flatnonzero(entry.closest <= thresholds[space]).tolist()
    }
    initial = distilled.config.get("initial")
    return {
        "label": method_name(distilled) if name == DISTILLED else name,
        "initial": initial if isinstance(initial, str) else None,
        "samples": len(distilled),
        "spaces": per_space,
        "flagged": len(flagged_any),
        "pairs": _pairs(distilled, found, thresholds, material),
    }


def _pairs(
    distilled: DistilledSet,
    found: Mapping[str, Distances],
    thresholds: Mapping[str, float],
    material: Material,
) -> list[dict[str, Any]]:
    """Samples with their closest record: every flagged pair and the closest others, nearest first.

    The least ``distance / threshold`` over the spaces in which the record is the closest decides.
    """
    spaces: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    for space, entry in found.items():
        for sample, (distance, record) in enumerate(
            zip(entry.closest.tolist(), entry.record.tolist(), strict=True)
        ):
            spaces.setdefault((sample, record), {})[space] = {
                "distance": distance,
                "threshold": thresholds[space],
                "flagged": distance <= thresholds[space],
            }
    order = sorted(
        spaces,
        key=lambda pair: (
            min(e["distance"] / max(e["threshold"], 1e-12) for e in spaces[pair].values()),
            pair,
        ),
    )
    flagged = [pair for pair in order if any(e["flagged"] for e in spaces[pair].values())]
    order = [*flagged, *(pair for pair in order if pair not in set(flagged))]
    order = order[: max(len(flagged), CLOSEST)]
    samples = torch.tensor([sample for sample, _ in order])
    records = material.train.images[[record for _, record in order]].cpu()
    correlation = (
        standardised(distilled.images[samples].float().flatten(1))
        * standardised(records.float().flatten(1))
    ).sum(1)
    peak = _peak(material)
    noise = peak_signal_to_noise(
        distilled.pixels()[samples], distilled.transform.invert(records), peak
    )
    return [
        {
            "sample": pair[0],
            "record": pair[1],
            "flagged": position < len(flagged),
            "spaces": spaces[pair],
            "correlation": r,
            "psnr": ratio,
            "peak": peak,
        }
        for position, (pair, r, ratio) in enumerate(
            zip(order, correlation.tolist(), noise, strict=True)
        )
    ]


def _peak(material: Material) -> float:
    """The range of values of (up to 1,000) training images in data space."""
    values = material.distilled.transform.invert(material.train.images[:_PEAK_OVER].cpu())
    return max(float(values.max() - values.min()), 1e-12)


def _histograms(own: Mapping[str, Distances], real: Mapping[str, Distances]) -> dict[str, Any]:
    """Space -> figure -> counts of the set and of the yardstick in common bins."""
    return {
        space: {
            figure: histograms(
                {"held-out": getattr(entry, figure), DISTILLED: getattr(own[space], figure)}
            )
            for figure in ("closest", "ratio")
        }
        for space, entry in real.items()
    }


def _control(spaces: Mapping[str, Space], material: Material) -> dict[str, Any] | None:
    """Validation images in place of synthetic ones: what a shift of training against test gives."""
    if len(material.validation) < 2:
        return None
    draw = seeds.generator(material.seed, "control")
    order = torch.randperm(len(material.validation), generator=draw)[:CONTROL].sort().values
    vectors = _vectors(material, material.validation.subset(order).images)
    return {
        name: share_nearer_to_train(
            vectors[name], space, seeds.derive(material.seed, "control", name)
        )
        for name, space in spaces.items()
    }


def _initialisation(sets: Mapping[str, DistilledSet]) -> dict[str, Any]:
    """Sets whose settings equal those of the first but for their first images, and the others."""
    own, *others = sets
    config = sets[own].config
    compared, different = [own], {}
    for name in others:
        theirs = sets[name].config
        keys = sorted(
            key
            for key in config.keys() | theirs.keys()
            if key not in _FREE and config.get(key) != theirs.get(key)
        )
        if keys or theirs.get("initial") == config.get("initial"):
            different[name] = keys
        else:
            compared.append(name)
    present = {sets[name].config.get("initial") for name in compared}
    missing = [initial for initial in ("real", "noise", "kmeans") if initial not in present]
    return {
        "compared": compared,
        "others": different,
        "missing": missing,
        "commands": [
            *(
                f"iadd-fast distill DATA --experts EXPERTS --out OUT ... --initial {initial}"
                for initial in missing
            ),
            *(["iadd-fast report SET --data DATA --out DIR --beside OTHER"] if missing else []),
        ],
    }
