"""The privacy figures of every set side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iadd_fast.evaluation import DISTILLED
from iadd_fast.report.sections.privacy_texts import (
    attack_name,
    number,
    rate_of,
    share_of,
    spread,
    target_of,
)

DISTANCE_COLUMNS = (
    ("set", False),
    ("started from", False),
    ("closest", False),
    ("ratio", False),
    ("flagged", False),
    ("nearer to training", False),
)
LEAK_COLUMNS = (
    ("set", False),
    ("students", False),
    ("TPR at 0.1 / 1 %", False),
    ("the set", False),
    ("first images, students", False),
    ("first images, the set", False),
)


def initialisation(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Sets that differ in their first images only, then the others, and what is missing."""
    found = measured["initialisation"]
    compared, others = found["compared"], list(found["others"])
    text = ""
    if len(compared) == 1:
        text = "No other set that differs in its first images only was given: nothing to compare."
    elif found["missing"]:
        text = f"Not among them: {', '.join(found['missing'])}."
    groups = [("Sets that differ in their first images only", compared)]
    if others:
        groups.append(("The other sets, which differ in more", others))
    return {
        "text": text,
        "groups": [
            {
                "distances": (
                    f"{caption}: distances in pixels, median (5 to 95 %), and what is flagged in "
                    "pixels / correlation / features",
                    [_distance_row(name, measured) for name in names],
                ),
                "leaks": (
                    f"{caption}: AUC of the worst attack on students (interval for the worst of "
                    "all) and of the distance to the set, on training records and on first images",
                    [_leak_row(name, measured) for name in names],
                ),
                "marked": [index for index, name in enumerate(names) if name == DISTILLED],
            }
            for caption, names in groups
        ],
        "commands": found["commands"],
    }


def _distance_row(name: str, measured: Mapping[str, Any]) -> list[str]:
    entry = measured["sets"][name]
    spaces = entry["spaces"]
    share = spaces["pixels"]["share_nearer_to_train"]
    flagged = " / ".join(f"{space['flagged']:,}" for space in spaces.values())
    return [
        entry["label"],
        entry["initial"] or "not recorded",
        spread(spaces["pixels"]["closest"]),
        spread(spaces["pixels"]["ratio"]),
        f"{flagged} of {entry['samples']:,}",
        share_of(share["value"], share["interval"]),
    ]


def _leak_row(name: str, measured: Mapping[str, Any]) -> list[str]:
    entry, targets = measured["sets"][name], measured["membership"]["targets"]
    students: dict[str, str] = {}
    the_set: dict[str, str] = {}
    rates = "not measured"
    for population in ("training part", "initial images"):
        target = target_of(targets, name, population)
        if target is None or target["worst"] is None:
            none = "no real ones" if entry["initial"] in ("noise", "kmeans") else "not measured"
            students[population] = the_set[population] = none
            continue
        worst, distance = target["attacks"][target["worst"]], target["attacks"]["distance"]
        told = number(worst["auc"], worst["adjusted"])
        students[population] = f"{told}, {attack_name(target['worst'])}"
        the_set[population] = number(distance["auc"], distance["interval"])
        if population == "training part":
            rates = " / ".join(rate_of(found) for found in worst["tpr"])
    return [
        entry["label"],
        students["training part"],
        rates,
        the_set["training part"],
        students["initial images"],
        the_set["initial images"],
    ]
