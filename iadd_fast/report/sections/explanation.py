"""The explainability section: what :func:`iadd_fast.audit.explanation.explain` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iadd_fast.report import figures
from iadd_fast.report.pictures import Samples
from iadd_fast.report.sections import explanation_figures as plots
from iadd_fast.report.sections import explanation_texts as texts
from iadd_fast.report.words import first

#: Synthetic samples drawn with their neighbours, neighbours of each, rows of the heat map, tensors
#: with a strip.
SAMPLES = 20
NEIGHBOURS = 3
ROWS = 120
STRIPS = 12
AREA_COLUMNS = (
    ("order, networks", False),
    ("top first", False),
    ("bottom first", False),
    ("both", False),
)
LAYER_COLUMNS = (
    ("layer", False),
    ("parameters", True),
    ("mean squared weight", True),
    ("5th to 95th percentile", False),
    ("share of weight", True),
    ("pruned", True),
    ("share of loss", True),
)
_AGAINST = {
    "learned_against_within_layers": "learned, against chance within layers",
    "learned_against_random": "learned, against chance",
    "movement_against_random": "size of change, against chance",
}
NOT_RECORDED = "Not recorded in this run."


def view(measured: Mapping[str, Any], samples: Samples) -> dict[str, Any]:
    """What ``explanation.html`` shows: texts, tables, plots and pictures."""
    importance, deletion = measured["importance"], measured["deletion"]
    if deletion["measured"]:
        found = [texts.tested(name, group) for name, group in deletion["groups"].items()]
    else:
        found = [f"Whether the weights mean anything was not tested: {deletion['reason']}."]
    pruned = texts.pruned(importance)
    return {
        "findings": [*texts.weights(importance), *([pruned] if pruned else []), *found],
        "panels": _panels(importance),
        "layer_columns": LAYER_COLUMNS,
        "layers": _layer_rows(importance),
        "deletion": _deletion_panels(deletion),
        "area_columns": AREA_COLUMNS,
        "areas": _area_rows(deletion),
        "helped": [texts.near(measured["nearest"]), *texts.helped(measured["influence"])],
        "map": _map(measured),
        "samples": _samples(measured, samples),
        "samples_note": _samples_note(measured),
        "how": texts.how(measured),
    }


def _panels(importance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Weights by layer and filter, shares of the loss, pruning: now and over the run."""
    panels = []
    layers, course = importance["layers"], importance["course"]
    if layers is not None:
        means, more = first({row["layer"]: row["mean"] for row in layers}, "layers")
        alt = f"Mean squared weight by layer: {_listed(means)}"
        panels.append(
            _panel(
                "Weights by layer, in the set",
                figures.layer_bars(means, alt=alt, name="explanation-layers"),
                f"First layer on top; the dashed line is at 1.{more}",
            )
        )
        panels.append(
            _course_panel(course, "layer_weight", "Weights by layer, over the run", "weight")
        )
        panels.append(_strips(course))
    panels.append(_loss_panel(importance))
    panels.append(
        _course_panel(course, "loss_share", "Share of the matching loss, over the run", "share")
    )
    pruning = importance["pruned_course"]
    if pruning is not None and any(pruning["pruned"]):
        last = pruning["pruned"][-1]
        panels.append(
            _panel(
                "Pruned parameters",
                figures.curve(
                    pruning["iterations"],
                    pruning["pruned"],
                    ylabel="parameters with weight 0",
                    alt=f"Number of pruned parameters over the run, {last:,} at the end",
                    name="explanation-pruned",
                ),
                f"{len(pruning['iterations']):,} of {pruning['changes']:,} changes are drawn.",
            )
        )
        by_layer = "Pruned parameters by layer"
        panels.append(_course_panel(course, "pruned_by_layer", by_layer, "parameters"))
    return panels


def _course_panel(course: Mapping[str, Any], key: str, title: str, ylabel: str) -> dict[str, Any]:
    found = course.get(key)
    if found is None:
        return _panel(title, None, NOT_RECORDED)
    shown, more = first(found["values"], "layers")
    last = {layer: values[-1] for layer, values in shown.items()}
    figure = plots.courses(
        found["iterations"],
        shown,
        ylabel="mean squared weight" if ylabel == "weight" else ylabel,
        alt=f"{title}, at the end: {_listed(last)}",
        name=f"explanation-{key.replace('_', '-')}",
    )
    note = f"From the first layer (blue) to the last (red); {_points(found)}.{more}"
    return _panel(title, figure, note)


def _points(found: Mapping[str, Any]) -> str:
    return f"{len(found['iterations']):,} of {found['recorded']:,} logged iterations"


def _strips(course: Mapping[str, Any]) -> dict[str, Any]:
    title, found = "Weights by filter, over the run", course.get("filter_weight")
    if found is None:
        return _panel(title, None, NOT_RECORDED)
    known = {
        tensor: [value for value in values[-1] or [] if value is not None]
        for tensor, values in found["values"].items()
    }
    strips = {tensor: values for tensor, values in found["values"].items() if known[tensor]}
    strips = dict(list(strips.items())[:STRIPS])
    if not strips:
        return _panel(title, None, NOT_RECORDED)
    ends = {tensor: f"{min(known[tensor]):.3g} to {max(known[tensor]):.3g}" for tensor in strips}
    said = ", ".join(f"{tensor} {text}" for tensor, text in ends.items())
    note = (
        f"{len(strips)} of {len(found['values'])} tensors, output channels or rows downwards, "
        f"{_points(found)} to the right."
    )
    runs = {tensor: run for tensor, run in course["filter_run"].items() if tensor in strips}
    if runs:
        note += " One row is the mean of several neighbours: " + ", ".join(
            f"{run} in {tensor}" for tensor, run in runs.items()
        )
        note += "."
    figure = plots.filter_strips(
        found["iterations"],
        strips,
        alt=f"Mean squared weight by filter, range at the end: {said}",
        name="explanation-filters",
    )
    return _panel(title, figure, note)


def _loss_panel(importance: Mapping[str, Any]) -> dict[str, Any]:
    title = "Share of the matching loss by layer"
    shares, more = first(_last_shares(importance), "layers")
    course = importance["course"]
    if not shares:
        return _panel(title, None, NOT_RECORDED)
    rows, total = importance["layers"] or [], importance["parameters"]
    parameters = {row["layer"]: row["parameters"] / total for row in rows}
    unweighted = _last_values(course.get("loss_share_unweighted"))
    figure = plots.loss_bars(
        shares,
        unweighted,
        parameters,
        alt=f"{title}: {_listed({layer: 100 * value for layer, value in shares.items()})} percent",
        name="explanation-loss",
    )
    at = course["loss_share"]["iterations"][-1]
    return _panel(title, figure, f"At iteration {at:,}, the last one logged.{more}")


def _last_shares(importance: Mapping[str, Any]) -> dict[str, float]:
    return _last_values(importance["course"].get("loss_share"))


def _last_values(found: Mapping[str, Any] | None) -> dict[str, float]:
    """The last values of a course that are known, by layer."""
    last = {} if found is None else {name: values[-1] for name, values in found["values"].items()}
    return {name: value for name, value in last.items() if value is not None}


def _layer_rows(importance: Mapping[str, Any]) -> list[list[str]]:
    shares = _last_shares(importance)
    return [
        [
            row["layer"],
            f"{row['parameters']:,}",
            f"{row['mean']:.4g}",
            f"{row['low']:.3g} to {row['high']:.3g}",
            "-" if row["share_of_weight"] is None else f"{100 * row['share_of_weight']:.1f} %",
            f"{row['pruned']:,}",
            f"{100 * shares[row['layer']]:.1f} %" if row["layer"] in shares else "not recorded",
        ]
        for row in importance["layers"] or []
    ]


def _deletion_panels(deletion: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not deletion["measured"]:
        return []
    panels = []
    tenth = deletion["shares"].index(0.1)
    for method, group in deletion["groups"].items():
        for side, words in (("top", "highest first"), ("bottom", "lowest first")):
            at = {
                label: group[side][order]["mean"][tenth]
                for order, (label, _) in plots.ORDERS.items()
            }
            title = f"{texts.GROUPS[method].capitalize()}: {words}"
            figure = plots.deletion_curves(
                deletion["shares"],
                group[side],
                alt=f"{title}. Accuracy in percent with 10 percent set back: {_listed(at)}",
                name=f"explanation-deletion-{method}-{side}",
            )
            panels.append(
                _panel(title, figure, f"Mean and standard deviation, {group['networks']} networks.")
            )
    return panels


def _area_rows(deletion: Mapping[str, Any]) -> list[list[str]]:
    if not deletion["measured"]:
        return []
    return [
        [
            f"{words}; {texts.GROUPS[method]}",
            *(texts.signed(group["areas"][key][side]) for side in ("top", "bottom", "both")),
        ]
        for method, group in deletion["groups"].items()
        for key, words in _AGAINST.items()
    ]


def _map(measured: Mapping[str, Any]) -> dict[str, Any] | None:
    found, names = measured["influence"], measured["class_names"]
    if not found["measured"]:
        return None
    shown = _in_turn([entry["label"] for entry in found["samples"]], ROWS)
    shown.sort(key=lambda index: (found["samples"][index]["label"], index))
    rows = [f"{index + 1}: {names[found['samples'][index]['label']]}" for index in shown]
    own = found["own_class_first"]
    said = "" if own is None else f"; {own['count']} of {own['of']} help their own class most"
    figure = plots.influence_map(
        [found["matrix"][index] for index in shown],
        rows,
        names,
        alt=f"Influence of {len(shown)} synthetic samples on {len(names)} classes{said}",
        name="explanation-influence",
    )
    return _panel(
        "Influence of samples on classes",
        figure,
        f"{len(shown):,} of {len(found['matrix']):,} samples; red helps, blue hurts; "
        f"mean of {found['networks_used']} networks.",
    )


def _samples(measured: Mapping[str, Any], samples: Samples) -> list[dict[str, Any]]:
    names, near = measured["class_names"], measured["nearest"]["samples"]
    influence = measured["influence"]
    result = []
    for index in sorted(_in_turn([entry["label"] for entry in near], SAMPLES)):
        entry = near[index]
        title = f"Sample {index + 1}, class {names[entry['label']]}"
        groups = []
        for space, words in (("pixels", "Nearest real"), ("features", "Nearest real by features")):
            found = entry[space]
            real = list(zip(found["index"], found["label"], found["distance"], strict=True))
            groups.append(
                {
                    "pictures": [
                        samples.real(
                            "train", at, f"real sample {at}, {names[label]}, at {distance:.3g}"
                        )
                        for at, label, distance in real[:NEIGHBOURS]
                    ],
                    "note": f"{words}: "
                    + ", ".join(
                        f"{names[label]} at {distance:.3g}"
                        for _, label, distance in real[:NEIGHBOURS]
                    ),
                }
            )
        helps = hurts = "not measured"
        if influence["measured"]:
            own, used = influence["samples"][index], influence["networks_used"]
            helps = texts.influences(own["helps"], names, used)
            hurts = texts.influences(own["hurts"], names, used)
        result.append(
            {
                "title": title,
                "synthetic": samples.synthetic(index, f"synthetic sample, {title}"),
                "groups": groups,
                "note": f"Helps: {helps}. Hurts: {hurts}.",
            }
        )
    return result


def _samples_note(measured: Mapping[str, Any]) -> str:
    count = len(measured["nearest"]["samples"])
    return (
        f"{min(SAMPLES, count):,} of {count:,} samples, with their {NEIGHBOURS} nearest real "
        "training samples by the values of the transform and by features of a full-data network; "
        "then the classes that the sample helps and hurts most, in nats."
    )


def _in_turn(labels: Sequence[int], most: int) -> list[int]:
    """At most ``most`` indices, one of each class in turn."""
    seen: dict[int, int] = {}
    rank = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        rank.append(seen[label])
    return sorted(range(len(labels)), key=lambda index: (rank[index], labels[index]))[:most]


def _panel(title: str, figure: Any, note: str) -> dict[str, Any]:
    return {"title": title, "figure": figure, "note": note}


def _listed(values: Mapping[str, float | None]) -> str:
    return ", ".join(
        f"{name} {'unknown' if value is None else format(value, '.3g')}"
        for name, value in values.items()
    )
