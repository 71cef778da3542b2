"""``explain``: what the weights of a set mean and what each of its samples does, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iadd_fast.audit.deletion import deletion
from iadd_fast.audit.explanation_importance import importance
from iadd_fast.audit.explanation_neighbours import nearest_real
from iadd_fast.audit.influence import influence
from iadd_fast.audit.material import Material
from iadd_fast.evaluation import FULL
from iadd_fast.metrics import read_metrics
from iadd_fast.students import Student


def explain(
    material: Material,
    metrics: str | Path | None = None,
    *,
    test_images: int = 500,
    networks: int = 5,
    draws: int = 5,
    unrolled: int = 3,
) -> dict[str, Any]:
    """Everything that a report says on explainability, JSON-able.

    ``importance``: :func:`~iadd_fast.audit.explanation_importance.importance`, what the weights are
    and were over the run. ``deletion``: :func:`~iadd_fast.audit.deletion.deletion`, whether they
    mean anything. ``nearest``: :func:`~iadd_fast.audit.explanation_neighbours.nearest_real`, the
    real samples nearest to each synthetic one. ``influence``:
    :func:`~iadd_fast.audit.influence.influence`, the classes that each helps and hurts.

    Each says what it costs. All measure on the networks of the first architecture; the weights
    belong to the network that the set was distilled for.

    Args:
        material: what is measured on. metrics: the run's ``metrics.jsonl``, where there is one.
        test_images: test samples of the deletion curves, at most.
        networks: of each group in the deletion curves, at most.
        draws: random orders of the deletion curves.
        unrolled: fresh networks that the influence is measured on.

    Raises:
        FileNotFoundError: there is no file at ``metrics``.
        ValueError: ``metrics`` cannot be read as such; a number is below 1, ``draws`` below 2.
    """
    for name, number, least in (
        ("test_images", test_images, 1),
        ("networks", networks, 1),
        ("draws", draws, 2),
        ("unrolled", unrolled, 1),
    ):
        if number < least:
            raise ValueError(f"{name}: got {number}; takes a whole number of at least {least}")
    course = None if metrics is None else read_metrics(metrics)
    student = _weighted_student(material)
    return {
        "class_names": list(material.distilled.class_names),
        "importance": importance(material.distilled, student, course),
        "deletion": deletion(
            material,
            material.distilled.weight,
            test_images=test_images,
            networks=networks,
            draws=draws,
        ),
        "nearest": nearest_real(material),
        "influence": influence(material, unrolled),
    }


def _weighted_student(material: Material) -> Student | None:
    """The network that the weights belong to; None where nothing says what it is."""
    distilled = material.distilled
    try:
        return distilled.student()
    except ValueError:  # a user's own module
        student = material.trained[FULL].student
        same = distilled.weight is None or len(distilled.weight) == student.num_parameters
        return student if same and student.spec == distilled.student_spec else None
