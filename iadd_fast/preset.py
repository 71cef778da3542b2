"""Presets: the published settings of a data set at so many images per class, by name.

They stand as data in ``presets.toml``, each with its source. Settings that are given beside a
preset win over it.
"""

from __future__ import annotations

import functools
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from iadd_fast import arguments

FILE = "presets.toml"


@dataclass(frozen=True)
class Preset:
    """The settings of one published run.

    Attributes:
        name: as ``preset=`` takes it.
        source: who published the numbers, or that they are ours and how they were chosen.
        method: of :func:`iadd_fast.distill`.
        student: the network as text, where none is given and the experts bring none.
        images_per_class: synthetic samples per class.
        data: for :func:`iadd_fast.load_data` (``normalise``).
        experts: for :func:`iadd_fast.train_experts`; ``epochs`` as published. Empty for method
            ``"gradient"``.
        distill: for :func:`iadd_fast.distill`.
        evaluate: for :func:`iadd_fast.evaluate`.
    """

    name: str
    source: str
    method: str
    student: str
    images_per_class: int
    data: dict[str, Any]
    experts: dict[str, Any]
    distill: dict[str, Any]
    evaluate: dict[str, Any]

    @property
    def reach(self) -> int:
        """The last epoch of an expert that a distillation can look at."""
        return int(self.distill["max_start_epoch"] + self.distill["expert_epochs"])

    def values(self, job: Literal["experts", "distill", "evaluate"]) -> dict[str, Any]:
        """The settings of one job; experts have the epochs that are reached and no more.

        Raises:
            ValueError: experts of a preset whose method has none.
        """
        if job == "experts" and not self.experts:
            raise ValueError(
                f"preset: {self.name!r} is for method {self.method!r}, without experts"
            )
        if job == "experts":
            return {**self.experts, "epochs": min(self.experts["epochs"], self.reach)}
        return dict(self.distill if job == "distill" else self.evaluate)

    def warn_unless_normalised(self, kind: str) -> None:
        """Warn where the data was normalised in another way than the preset's was."""
        wanted = self.data["normalise"]
        if kind != wanted:
            warnings.warn(
                f"preset: {self.name!r} is for images normalised by {wanted!r}; the data was "
                f"loaded with normalise={kind!r}",
                UserWarning,
                stacklevel=3,
            )


@functools.cache
def _all() -> dict[str, Preset]:
    held = tomllib.loads(resources.files("iadd_fast").joinpath(FILE).read_text("utf-8"))
    known = {}
    for name, own in held["presets"].items():
        shared: Mapping[str, Any] = held["shared"][own["shared"]]
        known[name] = Preset(
            name=name,
            source=held["sources"][own["source"]],
            method=shared["method"],
            student=own["student"],
            images_per_class=own["images_per_class"],
            data=own["data"],
            experts=dict(shared.get("experts", {})),
            distill={**shared["distill"], **own["distill"]},
            evaluate=dict(shared["evaluate"]),
        )
    return known


def presets() -> dict[str, Preset]:
    """Every preset by its name."""
    return dict(_all())


def find_preset(name: str | None) -> Preset | None:
    """The preset of that name; None for None.

    Raises:
        ValueError: there is none of that name; the message lists them.
    """
    if name is None:
        return None
    known = _all()
    return known[arguments.choice("preset", name, known)]
