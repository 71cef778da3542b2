"""Puts the report together: what is said, in which order, and what was not measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.files import write_atomically
from iadd_fast.baselines import BASELINES
from iadd_fast.evaluation import DISTILLED, FULL
from iadd_fast.evaluation_rows import Evaluation, EvaluationRow
from iadd_fast.report import figures, pictures
from iadd_fast.report.command import distill_command
from iadd_fast.report.metrics import Metrics, read_metrics

METHODS = {
    DISTILLED: "distilled set",
    "random": "random real images",
    "herding": "herding",
    "k_center": "k-centre",
    FULL: "full training data",
}
CURVES = (
    ("loss", "Matching loss", "loss"),
    ("lr", "Learned learning rate alpha", "alpha"),
    ("weight_spread", "Spread of the importance weights", "spread"),
    ("validation_accuracy", "Validation accuracy", "accuracy in %"),
)
NOT_MEASURED = "not measured"


def write_report(
    folder: Path | str,
    distilled: DistilledSet,
    *,
    evaluation: Evaluation | Mapping[str, Any] | None = None,
    metrics: Path | None = None,
    command: str = "",
) -> Path:
    """Write ``folder/index.html`` and return its path.

    The page is self-contained: no script, no network, pictures and plots inline. What was not
    measured is said to be so.

    Args:
        distilled: the set the report is about.
        evaluation: what :func:`iadd_fast.evaluation.evaluate` returned, or its ``to_dict()``.
        metrics: the ``metrics.jsonl`` of the run.
        command: what to run to get the set again; default: the ``iadd-fast distill`` that its
            configuration stands for.

    Raises:
        FileNotFoundError: there is no file at ``metrics``.
        ValueError: ``evaluation`` or ``metrics`` cannot be read as such.
    """
    if evaluation is not None and not isinstance(evaluation, Evaluation):
        evaluation = Evaluation.from_dict(evaluation)
    course = read_metrics(metrics) if metrics is not None else Metrics([])
    classes, picture_note = pictures.by_class(distilled)
    kind = "image" if distilled.images.ndim == 4 else "series"
    context = {
        "title": f"Distilled set of {distilled.data_name}",
        "kind": kind,
        "verdict": verdict(distilled, evaluation),
        "accuracy": accuracy_rows(evaluation),
        "accuracy_note": accuracy_note(evaluation),
        "classes": classes,
        "picture_note": picture_note,
        "curves": curves(course),
        "importance": importance(distilled, course),
        "provenance": provenance(distilled, evaluation),
        "command": command or distill_command(distilled),
    }
    template = resources.files("iadd_fast.report").joinpath("template.html").read_text("utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(context)
    path = Path(folder) / "index.html"
    write_atomically(path, lambda temporary: _write_text(temporary, page))
    return path


def verdict(distilled: DistilledSet, evaluation: Evaluation | None) -> list[str]:
    """Three sentences: the set, against real images of its size, against all of them."""
    count = len(distilled.images)
    noun = "images" if distilled.images.ndim == 4 else "series"
    size = f"{count:,} synthetic {noun} ({distilled.images_per_class} per class)"
    architecture = _main_architecture(distilled, evaluation)
    own = evaluation.row(DISTILLED, architecture) if evaluation is not None else None
    if evaluation is None or own is None:
        return [
            f"What a network learns from the {size} of {distilled.data_name} was {NOT_MEASURED}.",
            f"Real {noun} of the same number: {NOT_MEASURED}.",
            f"The full training data: {NOT_MEASURED}.",
        ]
    first = (
        f"{size} bring a fresh {architecture} to {_percent(own)} on the test part of "
        f"{evaluation.settings.get('data_name', distilled.data_name)}."
    )
    rivals = [row for name in BASELINES if (row := evaluation.row(name, architecture)) is not None]
    if rivals:
        best = max(rivals, key=lambda row: row.mean)
        second = (
            f"{_comparison(own, best)} the best choice of as many real {noun} "
            f"({METHODS[best.method]}: {best.mean:.1f} % ± {best.std:.1f})."
        )
    else:
        second = f"Real {noun} of the same number: {NOT_MEASURED}."
    full = evaluation.row(FULL, architecture)
    if full is not None:
        third = (
            f"All {full.images:,} training {noun} give {_percent(full)}; one network then trains "
            f"in {_seconds(full.seconds)} instead of {_seconds(own.seconds)}."
        )
    else:
        third = f"The full training data: {NOT_MEASURED}."
    return [first, second, third]


def accuracy_rows(evaluation: Evaluation | None) -> list[dict[str, Any]]:
    """The accuracy table, the distilled set first within each architecture."""
    if evaluation is None:
        return []
    rows = []
    for architecture in evaluation.architectures:
        for row in evaluation.rows:
            if row.architecture == architecture:
                rows.append(
                    {
                        "method": METHODS.get(row.method, row.method),
                        "own": row.method == DISTILLED,
                        "architecture": architecture,
                        "accuracy": f"{row.mean:.2f} ± {row.std:.2f}",
                        "networks": len(row.accuracies),
                        "seconds": f"{row.seconds:.2f}",
                        "images": f"{row.images:,}",
                        "bytes": f"{row.bytes:,}",
                    }
                )
    return rows


def accuracy_note(evaluation: Evaluation | None) -> str:
    """How the accuracies were measured, from the settings of the evaluation."""
    if evaluation is None or not evaluation.settings:
        return ""
    settings = evaluation.settings
    parts = []
    if "epochs" in settings:
        parts.append(f"{settings['epochs']} epochs")
    if settings.get("full_epochs"):
        parts.append(f"{settings['full_epochs']} for the full data")
    if "augment" in settings:
        parts.append(f"augmentation {settings['augment'] or 'none'}")
    if "test_images" in settings:
        parts.append(f"{settings['test_images']:,} test samples, tested once at the end")
    if "device" in settings:
        parts.append(f"trained on {settings['device']}")
    return "; ".join(parts) + "." if parts else ""


def curves(course: Metrics) -> list[dict[str, Any]]:
    """The plots over the iterations; ``figure`` is None for what was not measured."""
    shown = []
    for key, title, label in CURVES:
        iterations, values = course.column(key)
        if not values:
            shown.append({"title": title, "figure": None, "note": f"{NOT_MEASURED.capitalize()}."})
            continue
        note = f"First {values[0]:.4g}, last {values[-1]:.4g}."
        if len(values) > figures.POINTS:
            run = math.ceil(len(values) / figures.POINTS)
            note += f" Each point is the mean of {run} values."
        alt = (
            f"{title}, {len(values)} values over the iterations, from {values[0]:.4g} to "
            f"{values[-1]:.4g}, lowest {min(values):.4g}, highest {max(values):.4g}"
        )
        figure = figures.curve(iterations, values, ylabel=label, alt=alt, name=f"curve-{key}")
        shown.append({"title": title, "figure": figure, "note": note})
    return shown


def importance(distilled: DistilledSet, course: Metrics) -> dict[str, Any]:
    """Mean squared weight per layer: the last one in the metrics, else the one of the set."""
    iterations, courses = course.layer_weights()
    if courses:
        final = {layer: values[-1] for layer, values in courses.items()}
        source = f"at iteration {iterations[-1]:.0f}, the last recorded one"
    else:
        final = _weights_in_set(distilled)
        source = "in the distilled set"
    known = {layer: value for layer, value in final.items() if math.isfinite(value)}
    if not known:
        if distilled.weight is None:
            text = "The set holds no weights: all parameters counted the same."
        else:
            text = f"{NOT_MEASURED.capitalize()}: the layers of the student are not known."
        return {"text": text, "rows": [], "bars": None, "course": None}
    top, bottom = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
    if all(value == 1.0 for value in known.values()):
        text = "Every weight is 1: all parameters counted the same."
    else:
        text = (
            f"Mean squared weight of each layer {source}: highest in {top} ({known[top]:.3g}), "
            f"lowest in {bottom} ({known[bottom]:.3g}). Plain trajectory matching has 1 everywhere."
        )
    alt = "Mean squared weight per layer: " + ", ".join(
        f"{layer} {value:.3g}" for layer, value in known.items()
    )
    drawn = None
    if len(iterations) > 1:
        drawn = figures.layer_courses(
            iterations,
            courses,
            alt=f"Mean squared weight of {len(courses)} layers over the run",
            name="importance-course",
        )
    return {
        "text": text,
        "rows": [(layer, f"{value:.4g}") for layer, value in known.items()],
        "bars": figures.layer_bars(known, alt=alt, name="importance-bars"),
        "course": drawn,
    }


def provenance(
    distilled: DistilledSet, evaluation: Evaluation | None
) -> list[tuple[str, list[tuple[str, str]]]]:
    """(caption, rows) of each table on where the set comes from."""
    contents = {
        "data": distilled.data_name,
        "data fingerprint (SHA-256)": distilled.data_fingerprint,
        "samples": f"{len(distilled.images):,} of shape {tuple(distilled.images.shape[1:])}",
        "classes": distilled.num_classes,
        "labels": "soft" if distilled.labels.is_floating_point() else "hard",
        "bytes": f"{distilled.nbytes:,}",
        "normalisation": distilled.transform.kind,
        "learned learning rate alpha": f"{distilled.lr:.6g}",
        "augmentation": distilled.augment or "none",
        "seed": distilled.seed,
    }
    tables = [("The set", list(_flat(contents)))]
    for caption, values in (
        ("The run", distilled.summary),
        ("Settings of the distillation", distilled.config),
        ("The student", distilled.student_spec),
        ("Settings of the evaluation", evaluation.settings if evaluation is not None else {}),
        ("Versions", distilled.versions),
    ):
        rows = list(_flat(values))
        tables.append((caption, rows or [("", "not recorded")]))
    return tables


def _main_architecture(distilled: DistilledSet, evaluation: Evaluation | None) -> str:
    own = str(distilled.student_spec.get("name"))
    if evaluation is None or evaluation.row(DISTILLED, own) is not None:
        return own
    measured = [row.architecture for row in evaluation.rows if row.method == DISTILLED]
    return measured[0] if measured else own


def _percent(row: EvaluationRow) -> str:
    networks = len(row.accuracies)
    if networks == 1:
        return f"{row.mean:.1f} % (one network)"
    return f"{row.mean:.1f} % ± {row.std:.1f} ({networks} networks)"


def _comparison(own: EvaluationRow, other: EvaluationRow) -> str:
    difference = own.mean - other.mean
    if abs(difference) <= math.hypot(own.std, other.std):
        return "That is within the spread of"
    side = "above" if difference > 0 else "below"
    return f"That is {abs(difference):.1f} points {side}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1.0 else f"{value:.2f} s"


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


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}, ")
        elif value is None or isinstance(value, str):
            yield name, "none" if value is None else value
        elif isinstance(value, float):
            yield name, f"{value:.6g}"
        else:
            yield name, json.dumps(value, default=str, ensure_ascii=False)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
