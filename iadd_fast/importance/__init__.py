"""Importance policies: which parameters count how much in the matching distance."""

from __future__ import annotations

import inspect

from iadd_fast import arguments
from iadd_fast.importance.adaptive import Adaptive, Paper, Prune
from iadd_fast.importance.fisher import Fisher, fisher_information
from iadd_fast.importance.masks import Ranked, Similarity, Uniform
from iadd_fast.importance.policy import Importance, Segment, Setting
from iadd_fast.specs import parse_spec

__all__ = [
    "POLICIES",
    "Adaptive",
    "Fisher",
    "Importance",
    "Paper",
    "Prune",
    "Ranked",
    "Segment",
    "Setting",
    "Similarity",
    "Uniform",
    "fisher_information",
    "parse_importance",
]

POLICIES: dict[str, type[Importance]] = {
    "uniform": Uniform,
    "adaptive": Adaptive,
    "paper": Paper,
    "prune": Prune,
    "similarity": Similarity,
    "ranked": Ranked,
    "fisher": Fisher,
}


def parse_importance(text: str | Importance) -> Importance:
    """A policy from its name and options: ``"adaptive:direction=descent,learning_rate=0.01"``.

    Names: uniform (MTT), adaptive (IADD, the form that measured best), paper (IADD's printed form),
    prune, similarity, ranked, fisher. An :class:`Importance` is returned as it is.

    Raises:
        ValueError: unknown name or option, or a value the policy does not take.
    """
    if isinstance(text, Importance):
        return text
    name, options = parse_spec(text, "importance")
    arguments.choice("importance", name, POLICIES)
    known = inspect.signature(POLICIES[name]).parameters
    for key, value in options.items():
        if key not in known:
            takes = ", ".join(known) or "no options"
            raise ValueError(f"importance: {name} got option {arguments.shown(key)}; takes {takes}")
        if isinstance(value, str) != isinstance(known[key].default, str):
            kind = "text" if isinstance(known[key].default, str) else "a number"
            raise ValueError(f"importance: {name} {key} got {arguments.shown(value)}; takes {kind}")
    return POLICIES[name](**options)
