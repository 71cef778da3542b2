"""Accuracy, cost, verdict and provenance: the numbers and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.files import read_json
from iadd_fast.evaluation_rows import Evaluation, EvaluationRow
from iadd_fast.report import write_report
from iadd_fast.report.sections import accuracy, cost, provenance
from iadd_fast.report.sections import verdict as verdict_section
from tests.report.small import small_evaluation, small_set


def verdict(distilled: DistilledSet, evaluation: Evaluation, folder: Path) -> dict[str, str]:
    write_report(folder, distilled, evaluation=evaluation)
    return read_json(folder / "report.json")["verdict"]["sentences"]


def many_networks(own: list[float]) -> Evaluation:
    rows = small_evaluation().rows
    rows[0] = EvaluationRow("iadd", "mlp", own, 1.25, 288, 4)
    for row, values in zip(
        rows[1:], ([51.0, 52, 55, 53], [60.5, 62, 61, 60], [97, 97.5, 96.5, 97]), strict=True
    ):
        row.accuracies = [float(value) for value in values]
    return Evaluation(rows, {"epochs": 300, "full_epochs": 50, "test_images": 500})


def test_the_verdict_compares_with_the_best_baseline_and_the_full_data(tmp_path: Path) -> None:
    """Breaks if the weakest baseline is named, a sign turns round or an interval is left out."""
    own = verdict(small_set(), many_networks([80.0, 82.0, 81.0, 81.5]), tmp_path)
    first = own["Accuracy"]
    assert first.startswith(
        "4 synthetic images (2 per class) bring a fresh mlp to 81.1 % (95 % interval 79.8 to 82.5, "
        "4 networks), 15.9 points ("
    )
    assert ") below all training images (97.0 %), 20.2 points (" in first
    assert first.endswith(") above the best choice of as many real images (herding, 60.9 %).")
    below = verdict(small_set(), many_networks([40.0, 42.0, 41.0, 41.5]), tmp_path)["Accuracy"]
    assert ") below the best choice of as many real images (herding" in below
    level = verdict(small_set(), many_networks([60.0, 63.0, 61.0, 60.0]), tmp_path)["Accuracy"]
    assert "no shown difference (+0.1 points, -" in level


def test_the_verdict_says_when_distilling_has_paid_off(tmp_path: Path) -> None:
    """Breaks if seconds are mixed up, or a lower bound is sold as the number."""
    evaluation = many_networks([80.0, 82.0, 81.0, 81.5])
    text = verdict(small_set(summary={"seconds": 100.0}), evaluation, tmp_path)["Time and storage"]
    assert "one network trains in 1.2 s instead of 33.0 s" in text
    assert "on 288 instead of 72,000 bytes (1/250)" in text
    assert "at least 4 trainings (the time of its experts is not recorded)" in text
    known = small_set(summary={"seconds": 100.0, "expert_seconds": 28.0})
    assert "after 5 trainings." in verdict(known, evaluation, tmp_path)["Time and storage"]
    evaluation.rows[0].seconds = 40.0
    assert "never pays off" in verdict(known, evaluation, tmp_path)["Time and storage"]


@pytest.mark.parametrize(
    ("own", "full", "distil", "experts", "expected"),
    [
        (1.0, 3.0, 10.0, 0.0, 5),
        (1.0, 3.0, 10.1, 0.0, 6),
        (1.0, 3.0, 10.0, 2.0, 6),
        (3.0, 3.0, 10.0, 2.0, None),
        (4.0, 3.0, 10.0, 2.0, None),
        (1.0, 3.0, None, 2.0, None),
    ],
)
def test_break_even_is_the_first_training_by_which_no_time_is_lost(
    own: float, full: float, distil: float | None, experts: float, expected: int | None
) -> None:
    """Breaks if experts are forgotten, or n - 1 trainings would do, or n would not."""
    evaluation = Evaluation(
        [
            EvaluationRow("iadd", "mlp", [1.0], own, 288, 4),
            EvaluationRow("full", "mlp", [1.0], full, 7200, 100),
        ]
    )
    distilled = small_set(summary={"seconds": distil, "expert_seconds": experts})
    (entry,) = cost.measure(distilled, evaluation, {}, {})["break_even"]
    assert entry["trainings"] == expected
    if expected is not None and distil is not None:
        assert distil + experts + expected * own <= expected * full
        assert distil + experts + (expected - 1) * own > (expected - 1) * full
    else:
        assert entry["reason"]


def test_intervals_and_probabilities_are_those_of_paired_networks() -> None:
    """Against scipy: breaks if networks are compared unpaired, or Holm's order is turned round."""
    from scipy import stats

    own, near, far = [80.0, 90.0, 85.0], [79.0, 89.5, 83.5], [50.0, 52.0, 61.0]
    evaluation = Evaluation(
        [
            EvaluationRow("iadd", "mlp", own, 1.0, 1, 1),
            EvaluationRow("near", "mlp", near, 1.0, 1, 1),
            EvaluationRow("random", "mlp", far, 1.0, 1, 1),
            EvaluationRow("full", "mlp", [99.0, 98.0], 1.0, 1, 1),
        ]
    )
    measured = accuracy.measure(evaluation, {"near": "a set beside"})
    entries = {entry["method"]: entry for entry in measured["comparisons"]}
    paired = stats.ttest_rel(own, near)
    assert entries["near"]["label"] == "a set beside"
    assert entries["near"]["p"] == pytest.approx(paired.pvalue)
    ends = paired.confidence_interval(0.95)
    assert entries["near"]["interval"] == pytest.approx([ends.low, ends.high])
    welch = stats.ttest_ind(own, [99.0, 98.0], equal_var=False)
    assert entries["full"]["p"] == pytest.approx(welch.pvalue) and not entries["full"]["paired"]
    p = sorted(entry["p"] for entry in entries.values())
    adjusted = sorted(entry["p_adjusted"] for entry in entries.values())
    first = 3 * p[0]
    second = max(first, 2 * p[1])
    assert adjusted == pytest.approx([first, second, max(second, p[2])])
    for entry in entries.values():
        assert entry["exceeds"] == (entry["p_adjusted"] < 0.05)
    half = stats.t.ppf(0.975, 2) * np.std(own, ddof=1) / np.sqrt(3)
    assert measured["rows"][0]["interval"] == pytest.approx([85.0 - half, 85.0 + half])


def test_one_network_and_equal_differences_are_not_called_a_finding() -> None:
    """Breaks if a difference without a spread counts as certain."""
    for own, other in (([80.0], [50.0]), ([80.0, 82.0], [60.0, 62.0])):
        evaluation = Evaluation(
            [
                EvaluationRow("iadd", "mlp", own, 1.0, 1, 1),
                EvaluationRow("random", "mlp", other, 1.0, 1, 1),
            ]
        )
        measured = accuracy.measure(evaluation, {})
        (entry,) = measured["comparisons"]
        assert entry["exceeds"] is None and entry["interval"] is None and entry["p"] is None
        assert accuracy.view(measured)["comparisons"][0][-1].startswith("cannot be told")
        (sentence,) = accuracy.findings(measured["comparisons"])
        assert "no difference is shown from random real images" in sentence


def test_findings_name_each_side() -> None:
    """Breaks if a difference stands on the wrong side or an unresolved one is claimed."""
    names = ("a", "b", "c", "d")
    entries = [
        {"label": name, "architecture": "mlp", "difference": value, "exceeds": exceeds}
        for name, value, exceeds in zip(
            names, (2.0, -3.0, 1.0, 4.0), (True, True, False, True), strict=True
        )
    ]
    assert accuracy.findings(entries) == [
        "On mlp the distilled set is above a (+2.0 points) and d (+4.0 points) and below b (-3.0 "
        "points); no difference is shown from c (+1.0 points)."
    ]


def test_the_sets_fingerprint_changes_with_any_value() -> None:
    """Breaks if the page could be filed under another set."""

    def fingerprint(distilled: DistilledSet) -> str:
        measured = provenance.measure(distilled, None, {}, {}, command="", report_command="")
        return measured["set"]["set_fingerprint"]

    images = small_set().images.clone()
    images[3, 0, 2, 1] += 1e-6
    other = small_set(labels=torch.tensor([0, 1, 1, 1]))
    prints = [fingerprint(entry) for entry in (small_set(), small_set(images=images), other)]
    assert len(set(prints)) == 3 and prints[0] == fingerprint(small_set())


def row_of(group: str, slice_: str, gap: float, half: float, resolved: bool = True) -> Any:
    ends = {"value": gap, "low": gap - half, "high": gap + half}
    return {"slice": slice_, "group": group, "gap": ends, "resolved": resolved}


def attack(auc: float, half: float, control: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"auc": auc, "adjusted": [auc - half, auc + half], "control": control}


def audited(flagged: int, attacks: dict[str, Any]) -> dict[str, Any]:
    """The verdict's third line on parts of an audit that are cut down to what it reads."""
    agreement = {"value": 0.9, "low": 0.8, "high": 0.95}
    represented = {
        "coverage": {
            "figures": {"coverage": {"value": 0.39, "perfect": {"low": 0.5, "high": 0.6}}}
        },
        "agreement": {
            "pairs": {"full_distilled": {"agreement": agreement}, "full_full": None},
        },
        "slices": {
            "rows": [
                row_of("ward 3", "ward", 30.0, 9.0),
                row_of("cat", "class", 20.0, 5.0),
                row_of("dog", "class", 10.0, 5.0),
                row_of("rare", "class", 90.0, 50.0, resolved=False),
            ]
        },
        "rare": {"count": 7, "full_right": 50},
    }
    private = {
        "sets": {"iadd": {"flagged": flagged, "samples": 4}},
        "membership": {
            "targets": [
                {"method": "full", "population": "training part", "attacks": {"x": attack(1, 0)}},
                {"method": "iadd", "population": "training part", "attacks": attacks},
            ]
        },
    }
    costs = cost.measure(small_set(), None, {}, {})
    return verdict_section.measure(small_set(), None, costs, represented, private)


def test_the_verdict_takes_the_worst_groups_and_the_surest_attack() -> None:
    """Breaks if an unresolved group or an attack on other students counts, or a group is lost."""
    found = audited(0, {"a": attack(0.60, 0.15), "b": attack(0.54, 0.02)})
    text = found["sentences"]["Kept, lost, leaked"]
    assert "covers 39 % of the real data in feature space (as many real samples 50 to 60 %)" in text
    assert "agree with full-data students on 90 % of test samples." in text
    cat = "\N{LEFT DOUBLE QUOTATION MARK}cat\N{RIGHT DOUBLE QUOTATION MARK}"
    worst = f"the class {cat} (20.0 points, 15.0 to 25.0; largest of 2)"
    assert f"Most accuracy is lost on {worst} and the slice" in text
    assert "ward: ward 3" in text and "largest of 1" in text and "rare" not in text
    assert "No sample is a near copy of a training record; attacks tell training records" in text
    assert "strongest AUC 0.540, +0.040 against guessing, +0.020 to +0.060" in text
    assert found["numbers"]["lost"]["samples"] == 7


def test_the_verdict_claims_no_leak_and_no_loss_that_is_not_shown() -> None:
    """Breaks if an interval around nothing is told as a finding, or the control is left out."""
    control = {"holds": False, "difference": 0.01, "difference_adjusted": [-0.02, 0.04]}
    found = audited(2, {"a": attack(0.8, 0.05, control)})
    text = found["sentences"]["Kept, lost, leaked"]
    assert "2 of 4 samples lie suspiciously close to a training record; attacks do not tell" in text
    assert "AUC 0.800, +0.010 against a control, -0.020 to +0.040" in text
    level = {"value": 1.0, "low": -1.0, "high": 3.0}
    lost = {"worst_class": {"group": "cat", "gap": level}, "classes": 2}
    (sentence,) = verdict_section._lost_words({**lost, "worst_slice": None, "slices": 0})
    assert sentence.startswith("No loss is shown on the class")
