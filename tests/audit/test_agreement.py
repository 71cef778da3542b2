"""Agreement, calibration and rare cases against cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from iadd_fast.audit.agreement import agreement
from iadd_fast.audit.calibration import (
    calibration,
    expected_calibration_error,
    fit_temperature,
)
from iadd_fast.audit.outputs import Outputs
from iadd_fast.audit.rare_cases import benjamini_hochberg, over_represented, rare_cases
from iadd_fast.audit.slices import user_slice

NAMES = ("a", "b", "c")


def outputs(predictions: list[list[int]], labels: list[int], sure: float = 3.0) -> Outputs:
    """Networks that predict these classes, with this logit."""
    logits = sure * np.eye(len(NAMES))[np.array(predictions)]
    return Outputs(logits, np.array(labels, np.int64))


def test_agreement_lost_and_gained_by_hand() -> None:
    """Breaks when a network is paired with itself, or lost and gained are parts of all samples."""
    labels = [0, 0, 1, 1, 2]
    full = outputs([[0, 0, 1, 1, 0], [0, 1, 1, 1, 2]], labels)
    distilled = outputs([[0, 1, 1, 0, 2]], labels)
    found = agreement({"full": full, "distilled": distilled, "random": distilled}, NAMES)
    # first network: samples 0 and 2 alike; second: 0, 1, 2 and 4
    pairs = found["pairs"]
    assert pairs["full_distilled"]["agreement"]["value"] == pytest.approx(6 / 10)
    assert pairs["full_full"]["agreement"]["value"] == pytest.approx(3 / 5)
    assert pairs["distilled_distilled"] is None
    # the first is right 4 times and loses 1 and 3; the second right 4 times and loses 3
    assert found["lost"]["distilled"]["value"] == pytest.approx(3 / 8)
    assert found["lost"]["other_full"]["value"] == pytest.approx(2 / 8)
    # wrong at 4 and at 1; the distilled network has the first right only
    assert found["gained"]["distilled"]["value"] == pytest.approx(1 / 2)
    table = np.array(found["disagreement"]["matrix"])
    assert table.sum() == pytest.approx(5)
    assert table[1, 0] == pytest.approx(1.0)  # full says b, distilled a: sample 3, both networks
    assert table[0, 1] == pytest.approx(0.5)
    assert found["disagreement"]["largest"][0] == {
        "full": "b",
        "distilled": "a",
        "samples": 1.0,
        "full_right": 1.0,
    }


def test_kappa_is_cohens() -> None:
    """Breaks when chance is not that of the two networks' own class shares."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60).tolist()
    one, two = rng.integers(0, 3, (2, 60)).tolist()
    found = agreement(
        {
            "full": outputs([one], labels),
            "distilled": outputs([two], labels),
            "random": outputs([one], labels),
        },
        NAMES,
    )
    kappa = found["pairs"]["full_distilled"]["kappa"]["value"]
    assert kappa == pytest.approx(cohen_kappa_score(one, two))
    assert found["pairs"]["full_random"]["kappa"]["value"] == pytest.approx(1.0)


def test_calibration_error_by_hand() -> None:
    """Breaks when bins are not of equally many samples, or opposite errors cancel across bins."""
    confidence = np.array([[0.9, 0.5, 0.6, 1.0]])
    right = np.array([[1.0, 1.0, 1.0, 0.0]])
    # bins {0.5, 0.6}: 1 - 0.55; {0.9, 1.0}: 0.95 - 0.5
    found = expected_calibration_error(confidence, right, 2)
    assert found.value == pytest.approx(0.45)
    assert expected_calibration_error(confidence, right, 1).value == pytest.approx(0.0)


def test_scores_and_temperature() -> None:
    """Breaks when nll or Brier are another sum, or a temperature multiplies logits."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0.0, 2.0, (1, 4000, 3))
    chances = np.exp(logits[0]) / np.exp(logits[0]).sum(1, keepdims=True)
    labels = np.array([rng.choice(3, p=p) for p in chances])
    true = Outputs(logits, labels)
    sharp = Outputs(3.0 * logits, labels)
    good, bad = calibration(true, None, 0), calibration(sharp, true, 0)
    one_hot = np.eye(3)[labels]
    assert good["brier"]["value"] == pytest.approx(float(((chances - one_hot) ** 2).sum(1).mean()))
    nll = -np.log(chances[np.arange(4000), labels]).mean()
    assert good["nll"]["value"] == pytest.approx(float(nll))
    assert good["ece"]["value"] < good["ece_if_calibrated"]["high"] * 1.3
    assert bad["ece"]["low"] > bad["ece_if_calibrated"]["high"]
    assert fit_temperature(3.0 * logits[0], labels) == pytest.approx(3.0, rel=0.1)
    fitted = bad["temperature"]["halves"]
    assert fitted["temperature"]["value"] == pytest.approx(3.0, rel=0.1)
    assert fitted["nll"]["value"] == pytest.approx(float(nll), rel=0.01)
    assert bad["temperature"]["validation"]["temperature"]["value"] == pytest.approx(1.0, rel=0.1)
    assert good["temperature"]["validation"] is None


def test_a_calibrated_network_has_the_error_foretold() -> None:
    """Breaks when the yardstick of the calibration error is not that of calibrated outcomes."""
    rng = np.random.default_rng(2)
    errors, foretold = [], []
    for seed in range(20):
        logits = rng.normal(0.0, 1.5, (2, 150, 3))
        p = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
        labels = np.array([rng.choice(3, p=row) for row in p[0]])
        found = calibration(Outputs(logits[:1], labels), None, seed)
        errors.append(found["ece"]["value"])
        foretold.append(found["ece_if_calibrated"]["mean"])
    assert np.mean(errors) == pytest.approx(np.mean(foretold), rel=0.12)


def test_reliability_pools_networks() -> None:
    """Breaks when bins do not hold all predictions, or are not in the order of confidence."""
    rng = np.random.default_rng(3)
    found = calibration(Outputs(rng.normal(0, 2, (3, 200, 3)), rng.integers(0, 3, 200)), None, 0)
    bins = found["reliability"]
    assert len(bins) == found["bins"] == 10
    assert [one["predictions"] for one in bins] == [60] * 10
    sure = [one["confidence"] for one in bins]
    assert sure == sorted(sure)
    mean = float(np.mean([one["accuracy"]["value"] for one in bins]))
    assert mean == pytest.approx(found["accuracy"]["value"])


def test_rare_cases_by_hand() -> None:
    """Breaks when 'nearly all' is 'most', or samples are ordered by index."""
    labels = [0, 1, 2, 0, 1, 2]
    # of 5 networks right: 5, 4, 3, 5, 0, 5
    full = [list(labels) for _ in range(5)]
    full[0][1] = 0
    full[0][2] = full[1][2] = 0
    for network in full:
        network[4] = 0
    # right: 1, 0, 0, 2, 5, 0
    distilled = [[1, 2, 0, 1, 1, 0] for _ in range(5)]
    distilled[0][0] = 0
    distilled[0][3] = distilled[1][3] = 0
    both = {
        "full": outputs(full, labels),
        "distilled": outputs(distilled, labels),
        "random": outputs(full, labels),
    }
    found = rare_cases(both, [], NAMES)
    assert sorted(found["indices"]) == [0, 1, 5]
    assert found["indices"][0] == 5  # right for all of the first and for none of the second
    assert (found["count"], found["full_right"], found["opposite"]) == (3, 4, 1)
    assert found["lost_by_random"] == 0
    assert found["samples"][0] == {
        "index": 5,
        "label": "c",
        "predicted": "a",
        "predicted_by": 5,
        "distilled_networks": 5,
        "full_right": 5,
        "full_networks": 5,
        "full_probability": pytest.approx(found["samples"][0]["full_probability"]),
        "distilled_probability": pytest.approx(found["samples"][0]["distilled_probability"]),
    }
    assert found["samples"][0]["full_probability"] > found["samples"][0]["distilled_probability"]
    counts = {row["class"]: (row["count"], row["of"]) for row in found["by_class"]}
    assert counts == {"a": (1, 2), "b": (1, 1), "c": (1, 1)}


def test_common_groups() -> None:
    """Breaks when a group is judged among all samples, or without correction for many groups."""
    among = np.ones(200, dtype=bool)
    among[150:] = False
    chosen = np.zeros(200, dtype=bool)
    chosen[:10] = True
    site = user_slice("site", ["here" if index < 15 else "there" for index in range(200)])
    coin = user_slice("coin", np.random.default_rng(0).integers(0, 2, 200).tolist())
    found = over_represented([site, coin], chosen, among)
    assert found["tested"] == 4
    assert [row["group"] for row in found["common"]] == ["here"]
    row = found["common"][0]
    assert row["expected"] == pytest.approx(1.0)
    assert row["p_value"] == pytest.approx(float(stats.hypergeom.sf(9, 150, 15, 10)))


def test_benjamini_hochberg() -> None:
    """Breaks when q is not monotonous in p, or ranks are those of the order given."""
    p = [0.04, 0.001, 0.8, 0.03]
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p).tolist())
    assert benjamini_hochberg([]) == []
