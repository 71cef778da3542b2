"""Whether a network's confidence is how often it is right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from iadd_fast import seeds
from iadd_fast.audit.estimates import Estimate, estimate
from iadd_fast.audit.outputs import Numbers, Outputs, log_probabilities

MOST_BINS = 15
#: Samples that a temperature is fitted on, at most.
FITTED_ON = 2000
_PER_BIN = 20
_DRAWS = 200


def calibration(test: Outputs, validation: Outputs | None, seed: int) -> dict[str, Any]:
    """Calibration on the test part, mean over networks, each figure with its interval.

    ``nll``: mean of ``-log p(label)``, in nats. ``brier``: mean of ``sum_c (p_c - y_c)^2``, from 0
    to 2. ``ece``: ``sum_b n_b / n |accuracy_b - confidence_b|`` over bins of equally many samples,
    in the order of the largest probability (expected calibration error, Naeini et al. 2015;
    equal-mass bins: Nguyen and O'Connor 2015), for each network by itself; its interval takes bins
    and signs as known. That error is above 0 also for a network that is calibrated:
    ``ece_if_calibrated`` is its mean and 95 % quantile when outcomes are drawn from the very
    confidences (Broecker and Smith 2007). ``reliability``: accuracy by confidence with networks
    pooled.

    ``temperature``: T that minimises the nll of ``softmax(logits / T)`` for each network (Guo et
    al. 2017), and ece and nll with it. ``halves``: fitted on each half of the test part and applied
    to the other. ``validation``: fitted on the validation part; None where there is none, or the
    networks were trained on it. At most ``FITTED_ON`` samples enter a fit.

    Args:
        test: outputs on the test part. validation: on samples unseen in training, or None.
        seed: fixes the halves and draws.
    """
    chances = log_probabilities(test.logits)
    confidence = np.exp(chances.max(axis=2))
    bins = max(2, min(MOST_BINS, len(test.labels) // _PER_BIN))
    rng = np.random.default_rng(seeds.derive(seed, "calibration"))
    return {
        "accuracy": estimate(test.right).to_dict(),
        "confidence": estimate(confidence, share=False).to_dict(),
        "bins": bins,
        **_scores(test.logits, test.labels, bins),
        "ece_if_calibrated": _if_calibrated(confidence, bins, rng),
        "reliability": _reliability(confidence, test.right, bins),
        "temperature": {
            "halves": _by_halves(test, bins, rng),
            "validation": None
            if validation is None
            else _by_validation(test, validation, bins, rng),
        },
    }


def expected_calibration_error(confidence: Numbers, right: Numbers, bins: int) -> Estimate:
    """``ece`` of :func:`calibration` for confidences and outcomes ``[K, N]``."""
    signed = np.empty_like(confidence)
    for k, (sure, outcome) in enumerate(zip(confidence, right, strict=True)):
        for members in _bins(sure, bins):
            part = sure[members] - outcome[members]
            signed[k, members] = part * (1.0 if part.sum() >= 0 else -1.0)
    found = estimate(signed, share=False)
    low = None if found.low is None else max(found.low, 0.0)
    return Estimate(found.value, low, found.high, found.spread, found.variance)


def fit_temperature(logits: Numbers, labels: NDArray[np.int64]) -> float:
    """T from e^-4 to e^4 that minimises the nll of ``softmax(logits / T)`` on ``[N, classes]``."""
    from scipy import optimize

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = log_probabilities(logits * np.exp(-log_temperature))
        return -float(scaled[rows, labels].mean())

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x))


def _scores(logits: Numbers, labels: NDArray[np.int64], bins: int) -> dict[str, Any]:
    chances = log_probabilities(logits)
    rows = np.arange(len(labels))
    of_label = chances[:, rows, labels]
    p = np.exp(chances)
    brier = np.square(p).sum(axis=2) - 2.0 * np.exp(of_label) + 1.0
    right = Outputs(logits, labels).right
    return {
        "nll": estimate(-of_label, share=False).to_dict(),
        "brier": estimate(brier, share=False).to_dict(),
        "ece": expected_calibration_error(p.max(axis=2), right, bins).to_dict(),
    }


def _bins(confidence: Numbers, bins: int) -> list[NDArray[np.int64]]:
    order = np.argsort(confidence, kind="stable")
    return [part for part in np.array_split(order, bins) if len(part)]


def _if_calibrated(confidence: Numbers, bins: int, rng: np.random.Generator) -> dict[str, float]:
    errors = np.zeros(_DRAWS)
    chance = rng.random((_DRAWS, confidence.shape[1]))
    for sure in confidence:
        difference = (chance < sure) - sure
        for members in _bins(sure, bins):
            errors += np.abs(difference[:, members].sum(axis=1))
    errors /= confidence.size
    return {"mean": float(errors.mean()), "high": float(np.quantile(errors, 0.95))}


def _reliability(confidence: Numbers, right: Numbers, bins: int) -> list[dict[str, Any]]:
    numbers = np.empty(confidence.size, np.int64)
    for number, members in enumerate(_bins(confidence.ravel(), bins)):
        numbers[members] = number
    place = numbers.reshape(confidence.shape)
    rows = []
    for number in range(int(place.max()) + 1):
        inside = (place == number).astype(np.float64)
        rows.append(
            {
                "confidence": float((confidence * inside).sum() / inside.sum()),
                "accuracy": estimate(right * inside, inside).to_dict(),
                "predictions": int(inside.sum()),
            }
        )
    return rows


def _by_halves(test: Outputs, bins: int, rng: np.random.Generator) -> dict[str, Any] | None:
    count = len(test.labels)
    if count < 2:
        return None
    halves = np.array_split(rng.permutation(count), 2)
    scaled = np.empty_like(test.logits)
    fitted = np.empty((test.networks, 2))
    for k, logits in enumerate(test.logits):
        for side, (fit, rest) in enumerate((halves, halves[::-1])):
            fit = fit[:FITTED_ON]
            fitted[k, side] = fit_temperature(logits[fit], test.labels[fit])
            scaled[k, rest] = logits[rest] / fitted[k, side]
    return _scaled(scaled, test.labels, fitted.mean(axis=1), bins, len(halves[1][:FITTED_ON]))


def _by_validation(
    test: Outputs, validation: Outputs, bins: int, rng: np.random.Generator
) -> dict[str, Any]:
    fit = rng.permutation(len(validation.labels))[:FITTED_ON]
    fitted = np.array(
        [fit_temperature(logits[fit], validation.labels[fit]) for logits in validation.logits]
    )
    return _scaled(test.logits / fitted[:, None, None], test.labels, fitted, bins, len(fit))


def _scaled(
    logits: Numbers, labels: NDArray[np.int64], temperatures: Numbers, bins: int, fitted_on: int
) -> dict[str, Any]:
    spread = float(temperatures.std(ddof=1)) if len(temperatures) > 1 else None
    scores = _scores(logits, labels, bins)
    return {
        "temperature": {"value": float(temperatures.mean()), "spread": spread},
        "fitted_on": fitted_on,
        "ece": scores["ece"],
        "nll": scores["nll"],
    }
