"""The course of the run, and the weights by layer where no audit explains them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from iadd_fast.artifacts import DistilledSet
from iadd_fast.metrics import Metrics
from iadd_fast.report import figures
from iadd_fast.report.words import DRAWN, NOT_MEASURED, first

#: Column of the metrics -> title, name of the axis.
CURVES = {
    "loss": ("Matching loss", "loss"),
    "lr": ("Learned learning rate alpha", "alpha"),
    "weight_spread": ("Spread of the importance weights", "spread"),
    "validation_accuracy": ("Validation accuracy", "accuracy in %"),
}


def measure(distilled: DistilledSet, course: Metrics, explained: bool) -> dict[str, Any]:
    """The curves as they are drawn, and the mean squared weight of each layer.

    The course over the run is that of the layers that are drawn, ``DRAWN`` at most.

    Args:
        distilled: the set. course: the metrics of its run.
        explained: whether an audit has the weights already; ``importance`` is then None.
    """
    curves: dict[str, Any] = {}
    for key in CURVES:
        iterations, values = course.column(key)
        if not values:
            curves[key] = None
            continue
        x, y = figures.thinned(iterations, values)
        curves[key] = {
            "count": len(values),
            "first": values[0],
            "last": values[-1],
            "lowest": min(values),
            "highest": max(values),
            "iterations": x.tolist(),
            "values": y.tolist(),
        }
    return {"curves": curves, "importance": None if explained else _importance(distilled, course)}


def _importance(distilled: DistilledSet, course: Metrics) -> dict[str, Any]:
    iterations, courses = course.layer_weights(DRAWN)
    final = course.last_layer_weights() if courses else _weights_in_set(distilled)
    return {
        "layers": {layer: value for layer, value in final.items() if math.isfinite(value)},
        "iteration": iterations[-1] if courses else None,
        "weights": distilled.weight is not None,
        "iterations": iterations,
        "courses": {
            layer: [value if math.isfinite(value) else None for value in values]
            for layer, values in courses.items()
        },
    }


def _weights_in_set(distilled: DistilledSet) -> dict[str, float]:
    if distilled.weight is None:
        return {}
    try:
        layers = distilled.student().layers()
    except ValueError:
        return {}
    squared = distilled.weight.detach().double().square()
    return {
        layer: float(sum(squared[part].sum() for part in parts))
        / sum(part.stop - part.start for part in parts)
        for layer, parts in layers.items()
    }


def view(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of :func:`measure`."""
    importance = measured["importance"]
    return {
        "curves": [_curve(key, values) for key, values in measured["curves"].items()],
        "importance": None if importance is None else _layers(importance),
    }


def _curve(key: str, values: Mapping[str, Any] | None) -> dict[str, Any]:
    title, label = CURVES[key]
    if values is None:
        return {"title": title, "figure": None, "note": f"{NOT_MEASURED.capitalize()}."}
    note = f"First {values['first']:.4g}, last {values['last']:.4g}."
    if values["count"] > figures.POINTS:
        together = math.ceil(values["count"] / figures.POINTS)
        note += f" Each point is the mean of {together} values."
    alt = (
        f"{title}, {values['count']} values over the iterations, from {values['first']:.4g} to "
        f"{values['last']:.4g}, lowest {values['lowest']:.4g}, highest {values['highest']:.4g}"
    )
    figure = figures.curve(
        values["iterations"], values["values"], ylabel=label, alt=alt, name=f"run-{key}"
    )
    return {"title": title, "figure": figure, "note": note}


def _layers(importance: Mapping[str, Any]) -> dict[str, Any]:
    known = importance["layers"]
    if not known:
        if importance["weights"]:
            text = f"{NOT_MEASURED.capitalize()}: the layers of the student are not known."
        else:
            text = "The set holds no weights: all parameters counted the same."
        return {"text": text, "rows": [], "bars": None, "course": None}
    top, bottom = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
    if all(value == 1.0 for value in known.values()):
        text = "Every weight is 1: all parameters counted the same."
    else:
        at = importance["iteration"]
        source = (
            "in the distilled set"
            if at is None
            else f"at iteration {at:.0f}, the last recorded one"
        )
        text = (
            f"Mean squared weight of each layer {source}: highest in {top} ({known[top]:.3g}), "
            f"lowest in {bottom} ({known[bottom]:.3g}). Plain trajectory matching has 1 everywhere."
        )
    shown, more = first(known, "layers")
    alt = "Mean squared weight per layer: " + ", ".join(
        f"{layer} {value:.3g}" for layer, value in shown.items()
    )
    course = None
    if len(importance["iterations"]) > 1:
        courses = {
            layer: [math.nan if value is None else value for value in values]
            for layer, values in importance["courses"].items()
        }
        course = figures.layer_courses(
            importance["iterations"],
            courses,
            alt=f"Mean squared weight of {len(courses)} layers over the run",
            name="run-course",
        )
    return {
        "text": text,
        "rows": [(layer, f"{value:.4g}") for layer, value in known.items()],
        "bars": figures.layer_bars(shown, alt=alt, name="run-bars"),
        "more": more,
        "course": course,
    }
