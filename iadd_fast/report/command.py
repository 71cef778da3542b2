"""The command that makes a distilled set again, from what the set says of itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from iadd_fast.artifacts import DistilledSet
from iadd_fast.settings import METHODS

# What the data decides, not the user.
_OF_THE_DATA = ("name", "channels", "classes", "image_size", "inputs", "length")


def distill_command(distilled: DistilledSet) -> str:
    """``iadd-fast distill`` with the options that differ from their defaults.

    Empty where the configuration is not that of :func:`iadd_fast.distill`. ``DATA`` and
    ``EXPERTS`` stand for the user's own paths; a student or policy of the user's own has no text.
    """
    config, student = distilled.config, distilled.student_spec
    method = config.get("method", "trajectory")
    if not isinstance(method, str) or method not in METHODS or "name" not in student:
        return ""
    if not {"images_per_class", "seed"} <= config.keys():
        return ""
    words = ["iadd-fast", "distill", "DATA", "--out", "OUT"]
    if method == "trajectory":
        importance = config.get("importance")
        if not isinstance(importance, Mapping) or "name" not in importance:
            return ""
        words += ["--experts", "EXPERTS", "--importance", _spec(importance)]
    else:
        words += ["--method", method]
    words += ["--images-per-class", str(config["images_per_class"])]
    words += ["--student", _spec(student)]
    for entry in fields(METHODS[method]):
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
