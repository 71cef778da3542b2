"""Membership inference: can an attacker tell whom a student, or a set, was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iadd_fast import seeds
from iadd_fast.audit.material import Material
from iadd_fast.audit.neighbours import nearest
from iadd_fast.audit.populations import Records, imbalance, records_of
from iadd_fast.audit.rates import (
    RESOLVED,
    Placements,
    Scores,
    auc_interval,
    detectable,
    difference_interval,
    placements,
    tpr_at,
)
from iadd_fast.audit.scores import SCORES, score_tables
from iadd_fast.evaluation import DISTILLED, FULL

CALIBRATED = {"calibrated_loss": "loss", "calibrated_confidence": "confidence"}
DISTANCE = "distance"
#: Attacks on students, of which the worst is told.
ON_STUDENTS = (*SCORES, *CALIBRATED)
#: Attack -> what it is.
ATTACKS = {
    **SCORES,
    "calibrated_loss": "the loss score less its mean over networks trained on real subsets without "
    "the record (Watson et al. 2022)",
    "calibrated_confidence": "the confidence score less its mean over the same networks",
    DISTANCE: "minus the distance to the nearest sample of the set itself, in pixels; needs no "
    "network (Chen et al. 2020)",
}
RATES = (0.001, 0.01)
#: False-positive rates of the ROC curve, as far as the non-members resolve them.
CURVE = np.geomspace(1e-3, 0.9, 25)


@dataclass(frozen=True, eq=False)
class _Target:
    """Whom one attack is on: instances of members, each with the networks that are attacked."""

    method: str
    population: str
    members: list[NDArray[np.int64]]
    networks: list[list[int]]


@dataclass(frozen=True, eq=False)
class _Scored:
    """Scores of all records; ``[networks, R + M]`` by method and score."""

    records: Records
    tables: Mapping[str, Mapping[str, Scores]]
    set_distances: Mapping[str, Scores]
    subset_distances: Scores
    labels: Tensor
    classes: int
    seed: int


def membership(material: Material, initial: Mapping[str, Tensor]) -> dict[str, Any]:
    """Attacks on students of the full data, of real subsets and of every distilled set.

    Members are, for the full data and for distilled sets, the same draw of training records; for
    "random" the subset of each network, attacked alone; for a set that started from real images
    also these images. Non-members are test records. An attacker of full-data or distilled students
    holds all networks of the method: the score of a record is the mean over them.

    The control asks the same of networks that saw neither side: the score is the mean over the
    "random" networks whose subset did not hold the record. Its AUC is 0.5 where members and
    non-members are of one distribution; where it is not, the paired difference from it is what
    membership adds. The records of an attack are those with such networks. Calibrated attacks
    subtract that mean; their control calibrates the first of these networks by the others.

    Intervals are over records, for these networks; the spread over networks is given apart. The
    worst attack on students is named, with an interval that allows for the choice (Bonferroni).
    Costs one forward pass of up to 15,000 records and the subsets through every network.

    Args:
        material: what is measured on. initial: set -> places of its initial images in training.

    Returns:
        ``attacks`` (name -> what it is), ``targets`` (one entry for each method and kind of
        members), ``non_members`` and ``duplicates`` (test records left out). A target has its
        counts, ``class_imbalance``, the ``detectable`` AUC minus 0.5, the ``worst`` attack on
        students and for each attack ``auc``, ``interval``, ``adjusted`` (for the choice),
        ``control``, ``against_full`` (the paired difference from students of the full data),
        ``tpr``, ``roc`` and ``auc_by_network``, each None where there is none.

    Raises:
        ValueError: a subset of "random" is not of this data, or fewer than two test records.
    """
    records = records_of(material, list(initial.values()))
    scored = _score(material, records)
    networks = {name: list(range(len(t.thetas))) for name, t in material.trained.items()}
    sets = [DISTILLED, *material.beside]
    targets = [_Target(FULL, "training part", [records.drawn], [networks[FULL]])]
    targets.append(
        _Target("random", "own subset", records.subsets, [[k] for k in networks["random"]])
    )
    targets += [_Target(name, "training part", [records.drawn], [networks[name]]) for name in sets]
    targets += [
        _Target(name, "initial images", [records.positions(places)], [networks[name]])
        for name, places in initial.items()
    ]
    entries, full = [], {}
    for target in targets:
        entry, placed = _measured(target, scored)
        if target.method == FULL:
            full = placed
        elif target.members[0] is records.drawn:
            for attack in entry["attacks"].keys() & full.keys():
                difference = placed[attack].minus(full[attack])
                entry["attacks"][attack]["against_full"] = {
                    "difference": difference.auc,
                    "interval": list(difference_interval(difference)),
                }
        entries.append(entry)
    return {
        "attacks": dict(ATTACKS),
        "non_members": len(records.others),
        "duplicates": records.duplicates,
        "targets": entries,
    }


def _score(material: Material, records: Records) -> _Scored:
    places = records.real.to(material.device)
    images = torch.cat([material.train.images, material.validation.images])[places]
    labels = torch.cat([material.train.labels, material.validation.labels])[places]
    others = material.test.subset(records.others)
    parts = [(images, labels), (others.images, others.labels)]
    scored = torch.cat([images, others.images]).flatten(1)

    def to_set(samples: Tensor) -> Scores:
        found, _ = nearest(scored, samples.to(scored).flatten(1))
        return -found[:, 0].cpu().numpy()

    sets = {DISTILLED: material.distilled, **material.beside}
    return _Scored(
        records=records,
        tables={
            name: score_tables(trained.student, trained.thetas, parts)
            for name, trained in material.trained.items()
        },
        set_distances={name: to_set(distilled.images) for name, distilled in sets.items()},
        subset_distances=np.stack([to_set(own) for own, _ in material.trained["random"].sets]),
        labels=torch.cat([labels, others.labels]).cpu(),
        classes=material.data.num_classes,
        seed=material.seed,
    )


def _measured(target: _Target, scored: _Scored) -> tuple[dict[str, Any], dict[str, Placements]]:
    records = scored.records
    size = len(records.real)
    eligible = [
        _eligible(records.held, own if target.method == "random" else []) for own in target.networks
    ]
    members, references = _with_references(target.members, eligible)
    test = np.arange(size, size + len(records.others))
    counts = [len(part) for part in members]
    result: dict[str, Any] = {
        "method": target.method,
        "population": target.population,
        "instances": len(members),
        "members": sum(counts),
        "left_out": sum(len(part) for part in target.members) - sum(counts),
        "references": references,
        "attacks": {},
        "worst": None,
        "reason": None,
        "class_imbalance": None,
        "detectable": None,
    }
    if min(counts) < 2:
        return {**result, "reason": f"{min(counts)} members: too few to measure on"}, {}
    result["class_imbalance"] = imbalance(
        scored.labels[np.concatenate(members)], scored.labels[test], scored.classes
    )
    result["detectable"] = detectable(sum(counts), len(test))
    placed: dict[str, Placements] = {}
    for attack in ATTACKS:
        if attack == DISTANCE and target.method == FULL:
            continue
        if attack in CALIBRATED and references < 1:
            continue
        values = [
            _attack_scores(attack, target.method, own, mask, scored)
            for own, mask in zip(target.networks, eligible, strict=True)
        ]
        control = None
        if references >= (2 if attack in CALIBRATED else 1):
            control = [_control_scores(attack, mask, scored) for mask in eligible]
        choice = 1 if attack == DISTANCE else len(ON_STUDENTS)
        entry, placed[attack] = _figures(
            values, control, members, test, choice, seeds.derive(scored.seed, attack)
        )
        if attack in SCORES:
            table = scored.tables[target.method][attack]
            entry["auc_by_network"] = _by_network(table, target, members, test)
        result["attacks"][attack] = entry
    on_students = [name for name in ON_STUDENTS if name in result["attacks"]]
    result["worst"] = max(on_students, key=lambda name: excess(result["attacks"][name])[0])
    return result, placed


def _eligible(held: NDArray[np.bool_], own: Sequence[int]) -> NDArray[np.bool_]:
    """Which "random" networks may serve as reference for which record: bool ``[K, R + M]``."""
    mask = ~held
    mask[list(own)] = False
    return mask


def _with_references(
    members: Sequence[NDArray[np.int64]], eligible: Sequence[NDArray[np.bool_]]
) -> tuple[list[NDArray[np.int64]], int]:
    """Members with at least two reference networks, or one, or none: the most that half have."""
    for needed in (2, 1):
        kept = [
            part[mask[:, part].sum(0) >= needed]
            for part, mask in zip(members, eligible, strict=True)
        ]
        enough = all(
            2 * len(few) >= len(part) and len(few) >= 2
            for few, part in zip(kept, members, strict=True)
        )
        if enough:
            return kept, needed
    return list(members), 0


def _attack_scores(
    attack: str, method: str, own: list[int], mask: NDArray[np.bool_], scored: _Scored
) -> Scores:
    if attack == DISTANCE:
        if method == "random":
            return scored.subset_distances[own[0]]
        return scored.set_distances[method]
    base = CALIBRATED.get(attack, attack)
    mean = scored.tables[method][base][own].mean(0)
    if attack in CALIBRATED:
        return mean - _mean_over(scored.tables["random"][base], mask)
    return mean


def _control_scores(attack: str, mask: NDArray[np.bool_], scored: _Scored) -> Scores:
    if attack == DISTANCE:
        return _mean_over(scored.subset_distances, mask)
    table = scored.tables["random"][CALIBRATED.get(attack, attack)]
    if attack not in CALIBRATED:
        return _mean_over(table, mask)
    first = mask.argmax(0)
    rest = mask.copy()
    rest[first, np.arange(mask.shape[1])] = False
    return table[first, np.arange(mask.shape[1])] - _mean_over(table, rest)


def _mean_over(table: Scores, mask: NDArray[np.bool_]) -> Scores:
    """Mean over the networks of ``mask``; 0 for records that have none, which no one looks at."""
    return np.where(mask, table, 0.0).sum(0) / np.maximum(mask.sum(0), 1)


def _figures(
    values: Sequence[Scores],
    control: Sequence[Scores] | None,
    members: Sequence[NDArray[np.int64]],
    test: NDArray[np.int64],
    choice: int,
    seed: int,
) -> tuple[dict[str, Any], Placements]:
    """``choice``: how many attacks this one may be picked from."""
    sides = ([v[m] for v, m in zip(values, members, strict=True)], [v[test] for v in values])
    placed = placements(*sides)
    entry: dict[str, Any] = {
        "auc": placed.auc,
        "interval": list(auc_interval(placed)),
        "adjusted": list(auc_interval(placed, 0.05 / choice)),
        "control": None,
        "against_full": None,
        "auc_by_network": None,
        "tpr": _tprs(*sides, seed),
        "roc": _curve(*sides, seed),
    }
    if control is not None:
        sides = [v[m] for v, m in zip(control, members, strict=True)], [v[test] for v in control]
        entry["control"] = {
            **_controlled(placed, placements(*sides), choice),
            "tpr": _tprs(*sides, seed),
        }
    return entry, placed


def _controlled(placed: Placements, other: Placements, choice: int) -> dict[str, Any]:
    low, high = auc_interval(other)
    difference = placed.minus(other)
    return {
        "auc": other.auc,
        "interval": [low, high],
        "holds": low <= 0.5 <= high,
        "difference": difference.auc,
        "difference_interval": list(difference_interval(difference)),
        "difference_adjusted": list(difference_interval(difference, 0.05 / choice)),
    }


def _tprs(members: list[Scores], others: list[Scores], seed: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    size = len(others[0])
    for rate in RATES:
        needed = round(RESOLVED / rate)
        if size < needed:
            reason = f"{size:,} non-members; takes at least {needed:,}"
            found.append({"fpr": rate, "tpr": None, "interval": None, "reason": reason})
            continue
        ((value, low, high),) = tpr_at(members, others, [rate], seed)
        found.append({"fpr": rate, "tpr": value, "interval": [low, high], "reason": None})
    return found


def _curve(members: list[Scores], others: list[Scores], seed: int) -> dict[str, list[float]]:
    rates = CURVE[len(others[0]) * CURVE >= RESOLVED * (1 - 1e-9)].tolist()
    found = tpr_at(members, others, rates, seed)
    columns = list(zip(*found, strict=True)) or [(), (), ()]
    names = ("tpr", "low", "high")
    return {"fpr": rates, **{n: list(c) for n, c in zip(names, columns, strict=True)}}


def _by_network(
    table: Scores, target: _Target, members: Sequence[NDArray[np.int64]], test: NDArray[np.int64]
) -> list[float]:
    """The AUC of an attacker who holds one network, for each of them."""
    pairs = [
        (network, part)
        for own, part in zip(target.networks, members, strict=True)
        for network in own
    ]
    return [
        placements([table[network][part]], [table[network][test]]).auc for network, part in pairs
    ]


def excess(entry: Mapping[str, Any]) -> tuple[float, list[float], bool]:
    """What membership adds to the AUC, its interval allowing for the choice.

    Returns:
        AUC minus 0.5, or where the control's interval leaves out 0.5 the difference from it; the
        interval; whether the control was taken off.
    """
    control = entry["control"]
    if control is None or control["holds"]:
        low, high = entry["adjusted"]
        return entry["auc"] - 0.5, [low - 0.5, high - 0.5], False
    return control["difference"], control["difference_adjusted"], True
