"""The command that makes a distilled set again, from what the set says of itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from iadd_fast.artifacts import DistilledSet
from iadd_fast.settings import DistillSettings

# What the data decides, not the user.
_OF_THE_DATA = ("name", "channels", "classes", "image_size", "inputs", "length")


def distill_command(distilled: DistilledSet) -> str:
    """``iadd-fast distill`` with the options that differ from their defaults.

    Empty where the configuration is not that of :func:`iadd_fast.distill`. ``DATA`` and
    ``EXPERTS`` stand for the user's own paths; a student or policy of the user's own has no text.
    """
    config = distilled.config
    importance, student = config.get("importance"), distilled.student_spec
    if not isinstance(importance, Mapping) or "name" not in importance or "name" not in student:
        return ""
    if not {"images_per_class", "seed"} <= config.keys():
        return ""
    words = ["iadd-fast", "distill", "DATA", "--experts", "EXPERTS", "--out", "OUT"]
    words += ["--images-per-class", str(config["images_per_class"])]
    words += ["--importance", _spec(importance), "--student", _spec(student)]
    for entry in fields(DistillSettings):
        value = config.get(entry.name, entry.default)
        if value == entry.default:
            continue
        flag = entry.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    if config.get("transform") not in (None, "standard"):
        words += ["--normalise", str(config["transform"])]
    return shlex.join(words)


def _spec(description: Mapping[str, Any]) -> str:
    options = [f"{k}={v}" for k, v in description.items() if k not in _OF_THE_DATA]
    name = str(description["name"])
    return f"{name}:{','.join(options)}" if options else name
