"""Which of the real data a distilled set stands for, and which is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from iadd_fast.audit.agreement import agreement
from iadd_fast.audit.calibration import FITTED_ON, calibration
from iadd_fast.audit.coverage import coverage
from iadd_fast.audit.material import Material
from iadd_fast.audit.outputs import Outputs, log_probabilities, outputs_of
from iadd_fast.audit.rare_cases import rare_cases
from iadd_fast.audit.slice_accuracy import WIDEST, figures, slice_rows
from iadd_fast.audit.slices import check_slices, own_slices, quarters, user_slice
from iadd_fast.evaluation import DISTILLED, FULL
from iadd_fast.seeds import generator

#: What the results call a method -> its name in the material.
METHODS = {"distilled": DISTILLED, "full": FULL, "random": "random"}


def represent(
    material: Material, slices: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, Any]:
    """What of the real data the distilled set keeps and what it loses.

    Networks trained on the distilled set are compared on the test part with networks trained on
    the full data and, for scale, on random real samples of the same number.

    Costs one forward pass over the test part for every network of the three methods, one of the
    distilled networks over at most 2,000 validation samples, and
    :func:`~iadd_fast.audit.coverage.coverage`.

    Args:
        material: what is measured on.
        slices: name -> one value for each test sample, in the order of ``material.test``; see
            :func:`~iadd_fast.audit.slices.user_slice`.

    Returns:
        JSON-able. Accuracies and gaps are in percent and percentage points, all else are shares;
        ``{value, low, high, spread}`` is an estimate with its 95 % interval
        (:func:`~iadd_fast.audit.estimates.estimate`) and the deviation over networks.

        * ``test``, ``networks``, ``diverged``, ``confidence``: counts of test samples and networks,
          networks with outputs that are not finite, and the level of the intervals;
        * ``overall``: the row of all test samples; ``slices``: ``rows``
          (:func:`~iadd_fast.audit.slice_accuracy.slice_rows`), ``notes`` on how groups were made,
          ``absent``: classes without a test sample;
        * ``difficulty``: rows for quarters of the full-data networks' mean margin, hardest first.
          These quarters are defined by the full-data networks themselves, whose accuracy in them
          therefore says nothing; they are not ranked among the slices;
        * ``agreement``, ``calibration`` (by method), ``coverage``, ``rare``: see
          :mod:`~iadd_fast.audit.agreement`, :mod:`~iadd_fast.audit.calibration`,
          :mod:`~iadd_fast.audit.coverage`, :mod:`~iadd_fast.audit.rare_cases`.

    Raises:
        ValueError: as :func:`~iadd_fast.audit.slices.check_slices`.
    """
    slices = dict(slices or {})
    check_slices(slices, len(material.test))
    names = material.distilled.class_names
    outputs = {
        name: outputs_of(material.trained[method], material.test)
        for name, method in METHODS.items()
    }
    pixels = material.distilled.transform.invert(material.test.images.cpu())
    groups = [
        *own_slices(pixels, material.test.labels.cpu(), names),
        *(user_slice(name, values) for name, values in slices.items()),
    ]
    present = set(material.test.labels.tolist())
    return {
        "test": len(material.test),
        "networks": {name: one.networks for name, one in outputs.items()},
        "diverged": {name: one.diverged for name, one in outputs.items()},
        "confidence": 0.95,
        "overall": figures(outputs, np.ones(len(material.test), dtype=bool)),
        "slices": {
            "order": "gap",
            "widest": WIDEST,
            "rows": slice_rows(groups, outputs),
            "notes": {one.name: one.note for one in groups if one.note},
            "absent": [name for label, name in enumerate(names) if label not in present],
        },
        "difficulty": _difficulty(outputs),
        "agreement": agreement(outputs, names),
        "calibration": {
            name: calibration(
                one,
                _on_validation(material) if name == "distilled" else None,
                material.seed,
            )
            for name, one in outputs.items()
        },
        "coverage": coverage(material),
        "rare": rare_cases(outputs, groups, names),
    }


def _on_validation(material: Material) -> Outputs | None:
    """Of the distilled networks on validation samples, which they have not been trained on."""
    if len(material.validation) == 0:
        return None
    draw = generator(material.seed, "representativeness", "validation")
    chosen = torch.randperm(len(material.validation), generator=draw)[:FITTED_ON]
    return outputs_of(material.trained[DISTILLED], material.validation.subset(chosen))


def _difficulty(outputs: Mapping[str, Outputs]) -> list[dict[str, Any]]:
    """Rows for quarters of ``p(label) - largest other p``, mean over the full-data networks."""
    full = outputs["full"]
    chances = np.exp(log_probabilities(full.logits))
    rows = np.arange(len(full.labels))
    of_label = chances[:, rows, full.labels].copy()
    chances[:, rows, full.labels] = -1.0
    margin = (of_label - chances.max(axis=2)).mean(axis=0)
    cut = quarters("difficulty", margin)
    return [
        {"group": group, **figures(outputs, cut.members == place)}
        for place, group in enumerate(cut.groups)
    ]
