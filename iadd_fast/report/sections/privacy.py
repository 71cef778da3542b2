"""The privacy section: what :func:`iadd_fast.audit.privacy.privacy` measured, as text and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iadd_fast.evaluation import DISTILLED, FULL
from iadd_fast.report.pictures import Samples
from iadd_fast.report.sections import privacy_figures as plots
from iadd_fast.report.sections.privacy_sets import DISTANCE_COLUMNS, LEAK_COLUMNS, initialisation
from iadd_fast.report.sections.privacy_texts import (
    attack_name,
    number,
    percents,
    rate_of,
    share_of,
    signed,
    spread,
    target_of,
)

#: Pairs that are shown as pictures.
PAIRS = 12
STUDENTS = {
    FULL: "full data",
    "random": "real subset of the same size",
    DISTILLED: "distilled set",
}
ATTACK_COLUMNS = (
    ("attack", False),
    ("AUC", False),
    ("control", False),
    ("less control", False),
    ("less full data", False),
    ("TPR at 0.1 %", False),
    ("TPR at 1 %", False),
    ("one network", False),
)
ORIGIN_COLUMNS = (
    ("space", False),
    ("rank 1", False),
    ("median rank", True),
    ("records", True),
    ("median distance", True),
)


def view(measured: Mapping[str, Any], samples: Samples) -> dict[str, Any]:
    """What ``privacy.html`` shows: texts, tables, plots and pairs of pictures."""
    own = measured["sets"][DISTILLED]
    targets = measured["membership"]["targets"]
    return {
        "verdict": measured["verdict"],
        "limits": measured["limits"],
        "histograms": _histograms(measured),
        "space_columns": [("figure", False), *((space, False) for space in own["spaces"])],
        "spaces": _spaces(measured),
        "pairs": _pairs(own["pairs"][:PAIRS], samples),
        "pairs_note": _pairs_note(own["pairs"]),
        "rocs": _rocs(targets),
        "attack_columns": ATTACK_COLUMNS,
        "attacks": [
            (_caption(target), _attack_rows(target), _worst_row(target))
            for target in targets
            if target["method"] in STUDENTS
        ],
        "attack_names": [(attack_name(k), v) for k, v in measured["membership"]["attacks"].items()],
        "non_members": _non_members(measured),
        "origin": _origin(own),
        "origin_columns": ORIGIN_COLUMNS,
        "distance_columns": DISTANCE_COLUMNS,
        "leak_columns": LEAK_COLUMNS,
        "initialisation": initialisation(measured),
        "how": _how(measured),
    }


def _histograms(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    own = measured["sets"][DISTILLED]
    panels = []
    for space, figures in measured["histograms"].items():
        yardstick, mine = measured["yardstick"][space], own["spaces"][space]
        for figure, title, xlabel in (
            ("closest", "Distance to the closest training record", "distance"),
            ("ratio", "Closest over second closest", "ratio"),
        ):
            numbers = (
                f"median {mine[figure]['median']:.3g} of {own['samples']:,} synthetic samples, "
                f"{yardstick[figure]['median']:.3g} of {yardstick['count']:,} held-out real ones"
            )
            limit = yardstick["threshold"] if figure == "closest" else None
            dashed = "" if limit is None else f"; dashed: flagged at or below {limit:.3g}"
            drawn = plots.yardstick_histogram(
                figures[figure],
                DISTILLED,
                xlabel=xlabel,
                alt=f"{title} in {space}: {numbers}{dashed}",
                name=f"privacy-{figure}-{space}",
                threshold=limit,
            )
            note = f"{numbers[0].upper()}{numbers[1:]}{dashed}."
            panels.append({"title": f"{title}, {space}", "figure": drawn, "note": note})
    return panels


def _spaces(measured: Mapping[str, Any]) -> list[list[str]]:
    """Rows of figures, one column for each space."""
    columns = []
    for space, mine in measured["sets"][DISTILLED]["spaces"].items():
        real, share = measured["yardstick"][space], mine["share_nearer_to_train"]
        control = measured["control"]
        columns.append(
            {
                "closest training record": spread(mine["closest"]),
                "of held-out real samples": spread(real["closest"]),
                "closest held-out record": spread(mine["held_out"]),
                "ratio to the second closest": spread(mine["ratio"]),
                "ratio of held-out real samples": spread(real["ratio"]),
                "flagged at or below": f"{real['threshold']:.3g}",
                "flagged": f"{mine['flagged']:,} ({mine['flagged_expected']:.2g} expected of real "
                "samples)",
                "nearer to training": share_of(share["value"], share["interval"]),
                "95 % of such shares by chance": percents(share["expected"]),
                "of real validation samples": "no validation part"
                if control is None
                else share_of(control[space]["value"], control[space]["interval"]),
            }
        )
    return [[name, *(column[name] for column in columns)] for name in columns[0]]


def _pairs(pairs: Sequence[Mapping[str, Any]], samples: Samples) -> list[dict[str, Any]]:
    shown = []
    for pair in pairs:
        psnr = "values identical" if pair["psnr"] is None else f"PSNR {pair['psnr']:.1f} dB"
        sample, record = pair["sample"], pair["record"]
        distances = "; ".join(
            f"{space} {entry['distance']:.3g}, {'' if entry['flagged'] else 'not '}flagged at "
            f"{entry['threshold']:.3g}"
            for space, entry in pair["spaces"].items()
        )
        note = f"Distance in {distances}. Correlation {pair['correlation']:.2f}, {psnr}."
        shown.append(
            {
                "title": f"Synthetic {sample} and training {record}",
                "synthetic": samples.synthetic(sample, f"synthetic sample {sample}"),
                "real": samples.real("train", record, f"training record {record}"),
                "note": note,
            }
        )
    return shown


def _pairs_note(pairs: Sequence[Mapping[str, Any]]) -> str:
    flagged = sum(pair["flagged"] for pair in pairs)
    count = min(PAIRS, len(pairs))
    text = f"The {count} nearest pairs: left the synthetic sample, right the training record."
    if flagged > PAIRS:
        return text + f" {flagged:,} pairs are flagged; all of them are in report.json."
    return text + (" None of them is flagged." if flagged == 0 else "")


def _rocs(targets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One panel for training records and one for first images, each with one attack for all."""
    panels = []
    for population, title in (
        ("training part", "Who was trained on"),
        ("initial images", "The images the set started from"),
    ):
        own = target_of(targets, DISTILLED, population)
        if own is None or own["worst"] is None:
            continue
        attack = own["worst"]
        chosen = [own]
        if population == "training part":
            others = (target_of(targets, FULL), target_of(targets, "random"))
            chosen += [other for other in others if other is not None]
        curves = [
            (f"students of the {STUDENTS[t['method']]}", t["attacks"][attack]["roc"])
            for t in chosen
            if t["attacks"].get(attack) and t["attacks"][attack]["roc"]["fpr"]
        ]
        if not curves:
            continue
        aucs = ", ".join(
            f"{STUDENTS[t['method']]} {t['attacks'][attack]['auc']:.3f}"
            for t in chosen
            if t["attacks"].get(attack)
        )
        name = attack_name(attack)
        alt = f"ROC curves of the {name} attack on logarithmic axes; AUC: {aucs}"
        slug = population.replace(" ", "-")
        figure = plots.roc(curves, alt=alt, name=f"privacy-roc-{slug}")
        note = (
            f"Attack: {name}, the worst on students of the distilled set. AUC: {aucs}. Bands: 95 % "
            "of each point. Curves begin where ten non-members pass."
        )
        panels.append({"title": title, "figure": figure, "note": note})
    return panels


def _caption(target: Mapping[str, Any]) -> str:
    who = f"Attacks on students of the {STUDENTS[target['method']]}"
    members = {
        "training part": "training records",
        "own subset": f"records of {target['instances']} networks' own subsets",
        "initial images": "first images of the set",
    }[target["population"]]
    text = f"{who}; members: {target['members']:,} {members}"
    if target["left_out"]:
        text += f" ({target['left_out']:,} without reference networks left out)"
    return text


def _attack_rows(target: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for attack, entry in target["attacks"].items():
        control, full = entry["control"], entry["against_full"]
        alone = entry["auc_by_network"]
        rows.append(
            [
                attack_name(attack),
                number(entry["auc"], entry["interval"]),
                "none" if control is None else number(control["auc"], control["interval"]),
                "not measured"
                if control is None
                else signed(control["difference"], control["difference_interval"]),
                "does not apply" if full is None else signed(full["difference"], full["interval"]),
                *(rate_of(found) for found in entry["tpr"]),
                "needs none"
                if alone is None and attack == "distance"
                else "needs references"
                if alone is None
                else f"{min(alone):.3f} to {max(alone):.3f} ({len(alone)})",
            ]
        )
    return rows


def _worst_row(target: Mapping[str, Any]) -> list[int]:
    if target["worst"] is None:
        return []
    return [list(target["attacks"]).index(target["worst"])]


def _non_members(measured: Mapping[str, Any]) -> str:
    membership, settings = measured["membership"], measured["settings"]
    own = target_of(membership["targets"], DISTILLED, "training part")
    text = f"Non-members: {membership['non_members']:,} of {settings['test']:,} test records"
    if membership["duplicates"]:
        text += f"; {membership['duplicates']:,} that training has as well are left out"
    if own is not None and own["class_imbalance"] is not None:
        text += (
            "; the classes of members and non-members differ in "
            f"{100 * own['class_imbalance']:.1f} % of the records"
        )
    networks = settings["networks"]
    return text + f". Networks: {networks[DISTILLED]} of each method."


def _origin(own: Mapping[str, Any]) -> dict[str, Any]:
    origin = own["origin"]
    if origin is None:
        reason = f"Distances to first images are not given: {own['origin_reason']}."
        return {"text": reason, "rows": [], "figure": None, "note": ""}
    rows = [
        [
            space,
            f"{entry['first']:,} of {len(entry['rank']):,}: "
            + share_of(entry["first_share"], entry["first_interval"]),
            f"{entry['median_rank']:g}",
            f"{entry['of']:,}",
            f"{entry['median_moved']:.3g}",
        ]
        for space, entry in origin["spaces"].items()
    ]
    pixels = origin["spaces"]["pixels"]
    alt = (
        "Distance of each synthetic sample in pixels to its own first image over that to the "
        f"nearest other training record; {pixels['first']:,} of {len(pixels['rank']):,} are nearer "
        "to their own"
    )
    return {
        "text": "The set started from real training images. Rank 1: of all training records, its "
        "own first image is the nearest to the sample, so that whoever guesses it is right.",
        "rows": rows,
        "figure": plots.moved(pixels, alt=alt, name="privacy-moved"),
        "note": "Pixels; below the dashed line the own first image is the nearest record.",
    }


def _how(measured: Mapping[str, Any]) -> list[str]:
    settings, yardstick = measured["settings"], measured["yardstick"]
    spaces = "; ".join(f"{name}: {text}" for name, text in settings["spaces"].items())
    features = yardstick["features"]
    return [
        f"Spaces: {spaces} ({settings['features_of']}). In features {features['records']:,} of "
        f"{settings['train']:,} training and {features['held_out']:,} of {settings['test']:,} "
        "held-out records are looked at.",
        f"Flagged: the closest training record is at most as far as the closest "
        f"{100 * settings['quantile']:g} % of {yardstick['pixels']['count']:,} held-out real "
        "samples are from theirs.",
        "Nearer to training: both sides have equally many records of each class, drawn anew where "
        "one has more, so that a larger training part hides single copies from this share (not "
        "from the flags); the interval counts samples with the same nearest record once (Korn and "
        "Graubard 1998).",
        "The control puts the same question to networks of real subsets that held neither side. "
        "Where its AUC is not 0.5, training and test part differ and the difference from it "
        "counts. TPR: the true-positive rate at that false-positive rate. Intervals of an AUC: "
        "DeLong et al. 1988; of true positives: threshold and members both drawn anew.",
    ]
