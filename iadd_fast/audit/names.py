"""What a page calls the method that made a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iadd_fast.artifacts import DistilledSet

#: Policy of importance -> what it stands for.
POLICIES = {
    "adaptive": "IADD",
    "paper": "IADD, the paper's form",
    "uniform": "MTT",
    "similarity": "parameter pruning",
    "prune": "IADD with pruning",
    "ranked": "ranked masks",
    "fisher": "Fisher weights",
}
#: Of a set that does not say what made it.
UNKNOWN = "distilled set"
INITIAL = {"real": "real images", "noise": "noise", "kmeans": "k-means centres"}


def method_name(distilled: DistilledSet) -> str:
    """Such as ``"IADD (adaptive), from real images"``, out of the set's configuration."""
    config = distilled.config
    start = INITIAL.get(str(config.get("initial")))
    if config.get("method") == "gradient":
        name = "gradient matching (DC)" if distilled.augment is None else "gradient matching (DSA)"
    else:
        policy = _policy(config.get("importance"))
        name = f"{POLICIES[policy]} ({policy})" if policy in POLICIES else UNKNOWN
    return name if start is None else f"{name}, from {start}"


def names_of(sets: Sequence[DistilledSet]) -> list[str]:
    """A name for each set; those that would have the same one are numbered."""
    names = [method_name(distilled) for distilled in sets]
    result = []
    for index, name in enumerate(names):
        place = names[:index].count(name)
        result.append(f"{name} ({place + 1})" if names.count(name) > 1 else name)
    return result


def _policy(described: Any) -> str:
    if isinstance(described, Mapping):
        return str(described.get("name"))
    return str(described)
