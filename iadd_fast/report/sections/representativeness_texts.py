"""The sentences of the representativeness section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iadd_fast.report.words import count

METHODS = {
    "distilled": "distilled set",
    "full": "full data",
    "random": "random real samples",
}


def percents(one: Mapping[str, Any]) -> str:
    """Percent with the interval, such as "80.1 (71 to 88)"."""
    return f"{one['value']:.1f} ({one['low']:.0f} to {one['high']:.0f})"


def points(one: Mapping[str, Any]) -> str:
    """A difference of percents with its sign and interval."""
    return f"{one['value']:+.1f} ({one['low']:+.0f} to {one['high']:+.0f})"


def shares(one: Mapping[str, Any]) -> str:
    """A share as percent with its interval."""
    return f"{100 * one['value']:.1f} % ({100 * one['low']:.0f} to {100 * one['high']:.0f})"


def group(row: Mapping[str, Any]) -> str:
    """The name of a row's group, such as "class 3" or "site: north"."""
    between = " " if row["slice"] == "class" else ": "
    return f"{row['slice']}{between}{row['group']}"


def findings(measured: Mapping[str, Any]) -> list[str]:
    """What a reader should know first, each with its uncertainty."""
    sentences = [_overall(measured), _worst(measured), _agreement(measured["agreement"])]
    sentences += [_calibration(measured["calibration"]), *_coverage(measured["coverage"])]
    return [*sentences, _rare(measured["rare"]), *_diverged(measured)]


def _overall(measured: Mapping[str, Any]) -> str:
    row = measured["overall"]
    accuracy = row["accuracy"]
    return (
        f"Of {count(measured['test'], 'test sample')}, networks trained on the distilled set get "
        f"{percents(accuracy['distilled'])} % right, those trained on the full data "
        f"{percents(accuracy['full'])} %, those trained on as many random real samples "
        f"{percents(accuracy['random'])} %. The gap to the full data is {points(row['gap'])} "
        "points (in brackets: 95 % interval)."
    )


def _worst(measured: Mapping[str, Any]) -> str:
    rows = [row for row in measured["slices"]["rows"] if row["resolved"]]
    if not rows:
        return (
            "No group of test samples is large enough to tell its gap: every interval holds 0 and "
            f"is wider than {measured['slices']['widest']:.0f} points."
        )
    first = rows[0]
    lost = sum(row["gap"]["low"] > 0 for row in rows)
    return (
        f"The largest gap is in {group(first)}, {points(first['gap'])} points on "
        f"{count(first['count'], 'sample')}. In {lost} of {count(len(rows), 'group')} the whole "
        "interval lies above 0 (of groups without a gap about one in 40 would by chance)."
    )


def _agreement(measured: Mapping[str, Any]) -> str:
    pairs = measured["pairs"]
    text = (
        "A distilled and a full-data network predict the same for "
        f"{shares(pairs['full_distilled']['agreement'])} of the test samples"
    )
    if pairs["full_full"] is not None:
        text += f", two full-data networks for {shares(pairs['full_full']['agreement'])}"
    lost = measured["lost"]["distilled"]
    if lost is not None:
        text += f"; of what a full-data network gets right, a distilled one loses {shares(lost)}"
    return f"{text}."


def _calibration(measured: Mapping[str, Any]) -> str:
    ends = {}
    for name in ("distilled", "full"):
        one = measured[name]
        side = "more" if one["confidence"]["value"] > one["accuracy"]["value"] else "less"
        able = one["ece"]["value"] > one["ece_if_calibrated"]["high"]
        verdict = f"{side} confident than right" if able else "no further off than chance allows"
        ends[name] = f"{one['ece']['value']:.3f} ({verdict})"
    return (
        "The confidence of a prediction is off by (expected calibration error) "
        f"{ends['distilled']} on the distilled set and {ends['full']} on the full data."
    )


def _coverage(measured: Mapping[str, Any]) -> list[str]:
    if measured["figures"] is None:
        return [f"Coverage of the real data was not measured: {measured['reason']}."]
    sentences = []
    one = measured["figures"]["coverage"]
    if one["perfect"] is not None:
        low, high = one["perfect"]["low"], one["perfect"]["high"]
        side = (
            "less than" if one["value"] < low else "more than" if one["value"] > high else "as much"
        )
        sentences.append(
            f"In the features of full-data networks the synthetic samples cover "
            f"{100 * one['value']:.1f} % of the real ones; real samples of the same number and "
            f"classes cover {100 * low:.1f} to {100 * high:.1f} %: {side}"
            f"{' as' if side == 'as much' else ''} a perfect sample of this size."
        )
    kernel = measured["kernel"]
    if kernel is not None:
        tells = "tells" if kernel["largest_p"] <= 0.05 else "does not tell"
        sentences.append(
            f"A kernel test {tells} them from real samples of the same classes in all of "
            f"{count(len(kernel['by_space']), 'feature space')} (largest p: "
            f"{kernel['largest_p']:.3f})."
        )
    return sentences


def _rare(measured: Mapping[str, Any]) -> str:
    if measured["full_right"] == 0:
        return "No test sample is right for nearly all full-data networks, so none can be lost."
    text = (
        f"{count(measured['count'], 'test sample')} of {measured['full_right']:,} that nearly all "
        "full-data networks get right are wrong for nearly all distilled ones (with random real "
        f"samples: {measured['lost_by_random']:,}); the other way round it is "
        f"{measured['opposite']:,}."
    )
    if measured["common"]:
        first = measured["common"][0]
        text += (
            f" More than chance would give are in {group(first)} "
            f"({first['count']:,}, expected {first['expected']:.1f})."
        )
    elif measured["count"]:
        text += f" No group of {measured['tested']} holds more of them than chance would give."
    return text


def _diverged(measured: Mapping[str, Any]) -> list[str]:
    found = [
        f"{number} of {measured['networks'][name]} networks ({METHODS[name]})"
        for name, number in measured["diverged"].items()
        if number
    ]
    if not found:
        return []
    return [f"Outputs that are not finite: {', '.join(found)}; these count as undecided."]


def how(measured: Mapping[str, Any]) -> list[str]:
    """How it was measured."""
    networks = measured["networks"]
    coverage, rare = measured["coverage"], measured["rare"]
    return [
        f"{networks['full']} networks on the full data (validation part included), "
        f"{networks['distilled']} on the distilled set and {networks['random']}, each on random "
        "real samples of its own, all of the set's own architecture, on every test sample.",
        "Intervals count test samples and networks both as drawn (two crossed clusters, Cameron, "
        "Gelbach and Miller 2011, without the term they subtract: on the wide side), with "
        "Student's quantiles, which are wide for two networks; shares by Korn and Graubard, "
        "differences by Zou and Donner's method with the correlation over samples. With one "
        "network they are for this network only.",
        "Quarters of difficulty are cut by how sure the full-data networks are of the label, so "
        "their own accuracy there says nothing, and they are not ranked with the others.",
        "Calibration: bins of equally many predictions; the error of a calibrated network is "
        "above 0 too and drawn from the same confidences. A temperature is fitted on one half of "
        "the test part and applied to the other; on the validation part only for the distilled "
        "set, because the others were trained on it.",
        f"Coverage: features are the inputs of the last layer of {coverage['spaces']} full-data "
        f"networks. {coverage['reference']:,} real training samples are the reference; "
        f"{coverage['draws']} random subsets of {coverage['pool']:,} others, with as many of each "
        "class as the synthetic set, give the range of a perfect sample (2.5 to 97.5 %). The ball "
        "of a sample reaches to its k-th neighbour (Kynkäänniemi et al. 2019; Naeem et al. 2020); "
        "for coverage k is chosen so that a perfect sample covers about half.",
        f"Rare cases: right for at least {100 * rare['nearly']:.0f} % of the full-data networks "
        f"and at most {100 * (1 - rare['nearly']):.0f} % of the distilled ones; groups that hold "
        "more than chance would give by a hypergeometric test among what the former get right, "
        "false discovery rate 5 % (Benjamini and Hochberg).",
    ]


def limits(measured: Mapping[str, Any]) -> list[str]:
    """What it does not show."""
    sentences = [
        "Groups that no column names cannot be checked; a gap in one may hide in the mean.",
        "Synthetic samples are made to train networks, not to look real: low precision or a "
        "kernel test that tells them apart is a finding about their looks in feature space, not "
        "about the accuracy they give.",
        "The feature spaces are those of networks trained on the full data of one architecture; "
        "another may see other likenesses.",
        "A test part that lacks cases which occur in use says nothing of them.",
    ]
    if min(measured["networks"].values()) < 3:
        sentences.append(
            "With fewer than three networks the difference between networks is hardly known."
        )
    return sentences
