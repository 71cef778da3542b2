"""The section on :func:`iadd_fast.audit.representativeness.represent`, as text, tables, plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iadd_fast.report.pictures import Samples
from iadd_fast.report.sections import representativeness_figures as plots
from iadd_fast.report.sections.representativeness_texts import (
    METHODS,
    findings,
    group,
    how,
    limits,
    percents,
    points,
    shares,
)
from iadd_fast.report.words import count

#: Rows of slices that the page shows, and of those that are not resolved; all are in report.json.
ROWS = 20
UNRESOLVED = 10
DRAWN = 12
#: Classes up to which disagreements are drawn.
CELLS = 12
LEAST_COVERED = 10
SLICE_COLUMNS = [
    ("group", False),
    ("samples", True),
    ("full data", True),
    ("distilled", True),
    ("random", True),
    ("gap in points", True),
]
PAIRS = {
    "full_distilled": "full data with distilled set",
    "full_random": "full data with random real samples",
    "full_full": "two on the full data",
    "distilled_distilled": "two on the distilled set",
    "random_random": "two on random real samples",
}
FIGURES = {
    "precision": "precision: synthetic samples among real ones",
    "density": "density: how thickly real ones surround them",
    "recall": "recall: real samples among synthetic ones",
    "coverage": "coverage: real samples with a synthetic one near",
}


def view(measured: Mapping[str, Any], samples: Samples) -> dict[str, Any]:
    """What ``representativeness.html`` shows."""
    rows = measured["slices"]["rows"]
    resolved = [row for row in rows if row["resolved"]]
    unresolved = [row for row in rows if not row["resolved"]]
    return {
        "findings": findings(measured),
        "slice_columns": SLICE_COLUMNS,
        "slices": [
            _slice_row("all test samples", measured["overall"]),
            *(_slice_row(group(row), row) for row in resolved[:ROWS]),
        ],
        "slices_note": _slices_note(measured, len(resolved)),
        "slices_drawn": _intervals(resolved[:DRAWN]),
        "unresolved": [_slice_row(group(row), row) for row in unresolved[:UNRESOLVED]],
        "unresolved_caption": _unresolved_caption(measured, len(unresolved)),
        "difficulty": [_slice_row(row["group"], row) for row in measured["difficulty"]],
        "agreement": _agreement(measured["agreement"]),
        "overlap": _overlap(measured["agreement"]),
        "disagreements": _disagreements(measured["agreement"]["disagreement"]),
        "reliability": _reliability(measured["calibration"]),
        "calibration": _calibration(measured["calibration"]),
        "coverage": _coverage(measured["coverage"]),
        "rare": _rare(measured["rare"], samples),
        "how": how(measured),
        "limits": limits(measured),
    }


def _slice_row(name: str, row: Mapping[str, Any]) -> list[str]:
    accuracy = row["accuracy"]
    return [
        name,
        f"{row['count']:,}",
        *(percents(accuracy[method]) for method in ("full", "distilled", "random")),
        points(row["gap"]),
    ]


def _slices_note(measured: Mapping[str, Any], resolved: int) -> str:
    shown = min(ROWS, resolved)
    note = (
        f"{shown:,} of {count(resolved, 'resolved group')}, largest gap (full data less distilled) "
        "first; each with its own 95 % interval. The largest of many gaps is partly chance: it "
        "will be smaller on new samples."
    )
    cut = [f"{name}: {text}" for name, text in measured["slices"]["notes"].items()]
    if cut:
        note += f" Groups: {'; '.join(cut)}."
    absent = measured["slices"]["absent"]
    if absent:
        some = ", ".join(absent[:10]) + (", …" if len(absent) > 10 else "")
        note += f" Without a test sample, so not measured: {some}."
    return note


def _unresolved_caption(measured: Mapping[str, Any], unresolved: int) -> str:
    return (
        "Too small to tell: the gap's interval holds 0 and is wider than "
        f"{measured['slices']['widest']:.0f} points ({min(UNRESOLVED, unresolved):,} of "
        f"{count(unresolved, 'group')})"
    )


def _intervals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not rows:
        return None
    numbers = "; ".join(
        f"{group(row)}: full {row['accuracy']['full']['value']:.1f}, distilled "
        f"{row['accuracy']['distilled']['value']:.1f}"
        for row in rows[:5]
    )
    return {
        "title": "Where the gap is largest",
        "figure": plots.intervals(
            rows,
            alt=f"Accuracy in percent by group, largest gap first. {numbers}",
            name="representativeness-slices",
        ),
        "note": f"Accuracy with 95 % intervals in the {len(rows)} groups with the largest gaps.",
    }


def _agreement(measured: Mapping[str, Any]) -> list[list[str | None]]:
    rows: list[list[str | None]] = []
    for key, name in PAIRS.items():
        pair = measured["pairs"][key]
        if pair is None:
            rows.append([name, "one network only", "one network only"])
            continue
        kappa = pair["kappa"]["value"]
        rows.append([name, shares(pair["agreement"]), "none" if kappa is None else f"{kappa:.2f}"])
    return rows


def _overlap(measured: Mapping[str, Any]) -> list[list[str]]:
    names = {**METHODS, "other_full": "another full-data network"}
    rows = []
    for key in ("distilled", "random", "other_full"):
        cells = [measured[kind][key] for kind in ("lost", "gained")]
        rows.append([names[key], *("none to tell" if c is None else shares(c) for c in cells)])
    return rows


def _disagreements(measured: Mapping[str, Any]) -> dict[str, Any]:
    largest = measured["largest"]
    rows = [
        [
            f"{one['full']} / {one['distilled']}",
            f"{one['samples']:.1f}",
            f"{one['full_right']:.1f}",
        ]
        for one in largest
    ]
    figure = None
    names = measured["class_names"]
    if names is not None and len(names) <= CELLS and largest:
        first = largest[0]
        figure = {
            "title": "Where predictions part",
            "figure": plots.disagreements(
                measured["matrix"],
                names,
                alt="Test samples by the predictions of a full-data and a distilled network where "
                f"they differ; most, {first['samples']:.1f}, are {first['full']} for the former "
                f"and {first['distilled']} for the latter",
                name="representativeness-disagreements",
            ),
            "note": "Test samples, mean over pairs of networks; equal predictions left out.",
        }
    return {"rows": rows, "figure": figure}


def _reliability(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    panels = []
    for method in ("full", "distilled"):
        one = measured[method]
        panels.append(
            {
                "title": f"Confidence and accuracy, {METHODS[method]}",
                "figure": plots.reliability(
                    one["reliability"],
                    alt=f"Share right by confidence, {METHODS[method]}: mean confidence "
                    f"{one['confidence']['value']:.3f}, accuracy {one['accuracy']['value']:.3f}, "
                    f"expected calibration error {one['ece']['value']:.3f}",
                    name=f"representativeness-reliability-{method}",
                ),
                "note": f"{one['bins']} bins of equally many predictions, networks pooled, with "
                "95 % intervals. On the dashed line confidence is how often a prediction is right.",
            }
        )
    return panels


def _calibration(measured: Mapping[str, Any]) -> dict[str, Any]:
    columns = [("figure", False), *((METHODS[name], False) for name in measured)]
    rows: list[list[str | None]] = []
    for name, text in (
        ("confidence", "mean confidence"),
        ("ece", "expected calibration error"),
        ("nll", "negative log-likelihood (nats)"),
        ("brier", "Brier score (0 to 2)"),
    ):
        rows.append([text, *(_number(one[name]) for one in measured.values())])
    calibrated = [one["ece_if_calibrated"] for one in measured.values()]
    rows.insert(2, ["… of a calibrated network", *(_yardstick(one) for one in calibrated)])
    for key, text in (("halves", "test halves"), ("validation", "validation")):
        fits = [one["temperature"][key] for one in measured.values()]
        if all(fit is None for fit in fits):
            continue
        rows.append([f"temperature, fitted on {text}", *(_temperature(fit) for fit in fits)])
        rows.append(
            [
                "… calibration error with it",
                *("not fitted" if fit is None else _number(fit["ece"]) for fit in fits),
            ]
        )
    return {"columns": columns, "rows": rows}


def _number(one: Mapping[str, Any]) -> str:
    if one["low"] is None:
        return f"{one['value']:.3f}"
    return f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


def _yardstick(one: Mapping[str, float]) -> str:
    return f"{one['mean']:.3f}, 95 % below {one['high']:.3f}"


def _temperature(fit: Mapping[str, Any] | None) -> str:
    if fit is None:
        return "not fitted"
    found = fit["temperature"]
    spread = "" if found["spread"] is None else f" ± {found['spread']:.2f}"
    return f"{found['value']:.2f}{spread}"


def _coverage(measured: Mapping[str, Any]) -> dict[str, Any]:
    figures = measured["figures"]
    if figures is None:
        return {"reason": f"Not measured: {measured['reason']}.", "rows": [], "by_class": []}
    rows: list[list[str | None]] = []
    for name, text in FIGURES.items():
        one = figures[name]
        if one["value"] is None:
            rows.append([text, "none", "not meaningful", "not meaningful"])
            continue
        rows.append([text, str(one["k"]), f"{one['value']:.3f}", _range(one["perfect"])])
    by_class = [
        [row["class"], f"{row['count']:,}", f"{row['value']:.3f}", _range(row["perfect"])]
        for row in measured["by_class"][:LEAST_COVERED]
    ]
    kernel = [
        [
            f"network {number}",
            "none" if one["mmd2"] is None else f"{one['mmd2']:.4f}",
            f"{one['statistic'] - one['null_mean']:.4f}",
            f"{one['null_high'] - one['null_mean']:.4f}",
            f"{one['p_value']:.3f}",
        ]
        for number, one in enumerate((measured["kernel"] or {"by_space": []})["by_space"], start=1)
    ]
    return {
        "reason": None,
        "rows": rows,
        "by_class": by_class,
        "by_class_caption": f"Least covered classes ({len(by_class)} of "
        f"{len(measured['by_class']):,})",
        "kernel": kernel,
    }


def _range(perfect: Mapping[str, float] | None) -> str | None:
    if perfect is None:
        return None
    return f"{perfect['mean']:.3f} ({perfect['low']:.3f} to {perfect['high']:.3f})"


def _rare(measured: Mapping[str, Any], samples: Samples) -> dict[str, Any]:
    cases = []
    for one in measured["samples"]:
        alt = f"test sample {one['index']}, {one['label']}, taken for {one['predicted']}"
        cases.append(
            {
                "picture": samples.real("test", one["index"], alt),
                "title": one["label"],
                "note": f"taken for {one['predicted']} by {one['predicted_by']} of "
                f"{one['distilled_networks']}; right with full data: {one['full_right']} of "
                f"{one['full_networks']} (sample {one['index']})",
            }
        )
    classes = [
        [row["class"], f"{row['count']:,}", f"{row['of']:,}"]
        for row in measured["by_class"]
        if row["count"] > 0
    ]
    common = [
        [
            group(row),
            f"{row['count']:,}",
            f"{row['expected']:.1f}",
            f"{row['q']:.2g}",
        ]
        for row in measured["common"]
    ]
    series = bool(cases) and cases[0]["picture"].drawing is not None
    return {
        "cases": cases,
        "least": "15rem" if series else "8.5rem",
        "classes": classes[:ROWS],
        "common": common,
        "note": f"{len(cases):,} of {measured['count']:,} are shown, those first whose label the "
        "full-data networks are surest of beyond the distilled ones.",
    }
