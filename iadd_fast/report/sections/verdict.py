"""The verdict: accuracy; time and storage; what is kept, what is lost and what may leak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit.membership import excess
from iadd_fast.audit.privacy_words import is_unresolved
from iadd_fast.baselines import BASELINES
from iadd_fast.evaluation import DISTILLED, FULL
from iadd_fast.report.words import METHODS, count, duration, interval, ratio

Part = Mapping[str, Any]


def measure(
    distilled: DistilledSet,
    accuracy: Part | None,
    cost: Part,
    representativeness: Part | None,
    privacy: Part | None,
) -> dict[str, Any]:
    """Three sentences and the numbers in them, each out of the other sections' figures.

    Accuracies are those of the first architecture on which the set was measured.
    """
    architecture = _architecture(accuracy)
    numbers = {
        "architecture": architecture,
        "samples": len(distilled),
        "per_class": distilled.images_per_class,
        "accuracy": _accuracy(accuracy, architecture),
        "cost": _cost(cost, architecture),
        "kept": _kept(representativeness),
        "lost": _lost(representativeness),
        "leaked": _leaked(privacy),
    }
    noun = "images" if distilled.images.ndim == 4 else "series"
    return {
        "sentences": {
            "Accuracy": _accuracy_sentence(numbers, noun),
            "Time and storage": _cost_sentence(numbers),
            "Kept, lost, leaked": _audit_sentence(numbers),
        },
        "numbers": numbers,
    }


def view(measured: Part) -> dict[str, Any]:
    """The three sentences by their names."""
    sentences = measured["sentences"].items()
    return {
        "lines": [(name, text.replace(" %", "\N{NO-BREAK SPACE}%")) for name, text in sentences]
    }


def _architecture(accuracy: Part | None) -> str | None:
    rows = accuracy["rows"] if accuracy is not None else ()
    return next((row["architecture"] for row in rows if row["method"] == DISTILLED), None)


def _accuracy(accuracy: Part | None, architecture: str | None) -> dict[str, Any] | None:
    if accuracy is None or architecture is None:
        return None
    rows = {row["method"]: row for row in accuracy["rows"] if row["architecture"] == architecture}
    compared = {
        entry["method"]: entry
        for entry in accuracy["comparisons"]
        if entry["architecture"] == architecture
    }
    rivals = [rows[name] for name in BASELINES if name in rows]
    best = max(rivals, key=lambda row: row["mean"])["method"] if rivals else None
    keys = ("method", "mean", "std", "interval", "networks")
    return {
        "own": {key: rows[DISTILLED][key] for key in keys},
        "full": compared.get(FULL),
        "full_mean": rows[FULL]["mean"] if FULL in rows else None,
        "best_real": None if best is None else compared[best],
        "best_real_mean": None if best is None else rows[best]["mean"],
        "test": accuracy["settings"].get("test_images"),
    }


def _cost(cost: Part, architecture: str | None) -> dict[str, Any]:
    rows = {row["method"]: row for row in cost["rows"] if row["architecture"] == architecture}
    own = [
        entry
        for entry in cost["break_even"]
        if (entry["method"], entry["architecture"]) == (DISTILLED, architecture)
    ]
    return {
        "own": rows.get(DISTILLED),
        "full": rows.get(FULL),
        "bytes": cost["bytes"],
        "distil_seconds": cost["distil_seconds"],
        "break_even": own[0] if own else None,
    }


def _kept(part: Part | None) -> dict[str, Any] | None:
    if part is None:
        return None
    figures = part["coverage"]["figures"]
    coverage = None if figures is None else figures["coverage"]
    pairs = part["agreement"]["pairs"]
    return {
        "coverage": None if coverage is None else coverage["value"],
        "coverage_of_real": None if coverage is None else coverage["perfect"],
        "agreement": pairs["full_distilled"]["agreement"] if pairs["full_distilled"] else None,
        "agreement_of_full": pairs["full_full"]["agreement"] if pairs["full_full"] else None,
    }


def _lost(part: Part | None) -> dict[str, Any] | None:
    if part is None:
        return None
    rows = [row for row in part["slices"]["rows"] if row["resolved"]]
    worst: dict[str, Any] = {}
    for kind, plural in (("class", "classes"), ("slice", "slices")):
        members = [row for row in rows if (row["slice"] == "class") == (kind == "class")]
        worst[f"worst_{kind}"] = members[0] if members else None
        worst[plural] = len(members)
    return {
        **worst,
        "samples": part["rare"]["count"] if part.get("rare") else None,
        "of": part["rare"]["full_right"] if part.get("rare") else None,
    }


def _leaked(part: Part | None) -> dict[str, Any] | None:
    """The count of near copies, and the attack on the set that surely finds most."""
    if part is None:
        return None
    attacks = [
        {
            "population": target["population"],
            "attack": name,
            "auc": entry["auc"],
            "excess": excess(entry)[0],
            "interval": excess(entry)[1],
            "controlled": excess(entry)[2],
        }
        for target in part["membership"]["targets"]
        if target["method"] == DISTILLED
        for name, entry in target["attacks"].items()
    ]
    own = part["sets"][DISTILLED]
    return {
        "flagged": own["flagged"],
        "samples": own["samples"],
        "attacks": len(attacks),
        "strongest": max(attacks, key=lambda entry: entry["interval"][0], default=None),
    }


def _accuracy_sentence(numbers: Part, noun: str) -> str:
    size = f"{numbers['samples']:,} synthetic {noun} ({numbers['per_class']} per class)"
    found = numbers["accuracy"]
    if found is None:
        return f"what a network learns from the {size} was not measured."
    own = found["own"]
    spread = interval(own["interval"])
    spread = f"95 % interval {spread}, " if spread else ""
    text = (
        f"{size} bring a fresh {numbers['architecture']} to {own['mean']:.1f} % "
        f"({spread}{count(own['networks'], 'network')})"
    )
    parts = []
    if found["full"] is not None:
        parts.append(f"{_against(found['full'])} all training {noun} ({found['full_mean']:.1f} %)")
    if found["best_real"] is not None:
        best = found["best_real"]
        parts.append(
            f"{_against(best)} the best choice of as many real {noun} "
            f"({METHODS[best['method']]}, {found['best_real_mean']:.1f} %)"
        )
    text += "".join(f", {part}" for part in parts) + "."
    missing = [
        name
        for name, entry in (
            ("the full training data", found["full"]),
            (f"as many real {noun}", found["best_real"]),
        )
        if entry is None
    ]
    return text + "".join(f" Not measured: {name}." for name in missing)


def _against(entry: Part) -> str:
    if entry["exceeds"] is None:
        return f"{entry['difference']:+.1f} points (uncertainty not known) against"
    if not entry["exceeds"]:
        ends = interval(entry["interval"], 1, "+")
        low, high = entry["interval"]
        note = "" if low <= 0 <= high else "; too uncertain for the number of comparisons here"
        return f"no shown difference ({entry['difference']:+.1f} points, {ends}{note}) from"
    side = "above" if entry["difference"] > 0 else "below"
    ends = interval(sorted(abs(end) for end in entry["interval"]))
    return f"{abs(entry['difference']):.1f} points ({ends}) {side}"


def _cost_sentence(numbers: Part) -> str:
    found = numbers["cost"]
    own, full, even = found["own"], found["full"], found["break_even"]
    if own is None:
        return "training times were not measured." + _distilling(found)
    text = f"one network trains in {duration(own['seconds'])}"
    if full is None:
        return (
            f"{text} on {own['bytes']:,} bytes; the full training data was not measured."
            + _distilling(found)
        )
    share = "" if own["storage_ratio"] is None else f" (1/{ratio(own['storage_ratio'])})"
    text += (
        f" instead of {duration(full['seconds'])}, on {own['bytes']:,} instead of "
        f"{full['bytes']:,} bytes{share}."
    )
    text += _distilling(found)
    if even is None:
        return text
    if even["trainings"] is not None:
        at_least = "at least " if even["at_least"] else ""
        beyond = " (the time of its experts is not recorded)" if even["at_least"] else ""
        after = count(even["trainings"], "training")
        return f"{text} It has paid off in time after {at_least}{after}{beyond}."
    if even["saved_seconds"] <= 0:
        return f"{text} In time it never pays off: the full data trains no slower."
    return text


def _distilling(found: Part) -> str:
    seconds = found["distil_seconds"]
    if seconds is None:
        return " How long distilling took is not recorded."
    return f" Distilling took {duration(seconds)}."


def _audit_sentence(numbers: Part) -> str:
    kept, lost, leaked = numbers["kept"], numbers["lost"], numbers["leaked"]
    if kept is None and leaked is None:
        return "not measured: this report was written without the data."
    sentences = []
    if kept is None or lost is None:
        sentences.append("what is kept and lost of the real data was not measured.")
    else:
        sentences += [*_kept_words(kept), *_lost_words(lost)]
    if leaked is None:
        sentences.append("What may leak was not measured.")
    else:
        sentences += _leaked_words(leaked)
    return " ".join(sentences)


def _kept_words(kept: Part) -> list[str]:
    sentences = []
    if kept["coverage"] is not None:
        text = f"the set covers {100 * kept['coverage']:.0f} % of the real data in feature space"
        perfect = kept["coverage_of_real"]
        if perfect is not None:
            low, high = 100 * perfect["low"], 100 * perfect["high"]
            text += f" (as many real samples {low:.0f} to {high:.0f} %)"
        sentences.append(text + ".")
    agreement = kept["agreement"]
    if agreement is not None:
        text = f"Its students agree with full-data students on {_share(agreement)} of test samples"
        if kept["agreement_of_full"] is not None:
            text += f", full-data students among themselves on {_share(kept['agreement_of_full'])}"
        sentences.append(text + ".")
    return sentences


def _lost_words(lost: Part) -> list[str]:
    shown: list[str] = []
    largest: list[str] = []
    for kind, plural in (("class", "classes"), ("slice", "slices")):
        row, of = lost[f"worst_{kind}"], lost[plural]
        if row is None:
            continue
        name = row["group"] if kind == "class" else f"{row['slice']}: {row['group']}"
        gap = row["gap"]
        words = (
            f"the {kind} \N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK} "
            f"({gap['value']:.1f} points, {interval((gap['low'], gap['high']))}; largest of {of:,})"
        )
        (shown if gap["low"] > 0 else largest).append(words)
    if not shown and not largest:
        return ["No group has enough test samples and networks to tell what is lost."]
    sentences = [f"Most accuracy is lost on {' and '.join(shown)}."] if shown else []
    if largest:
        sentences.append(f"No loss is shown on {' and '.join(largest)}.")
    return sentences


def _leaked_words(leaked: Part) -> list[str]:
    copies = (
        f"{leaked['flagged']:,} of {leaked['samples']:,} samples lie suspiciously close to a "
        "training record"
        if leaked["flagged"]
        else "No sample is a near copy of a training record"
    )
    strongest = leaked["strongest"]
    if strongest is None:
        return [f"{copies}; membership inference was not measured."]
    low, high = strongest["interval"]
    whom = "its first images" if strongest["population"] == "initial images" else "training records"
    against = "a control" if strongest["controlled"] else "guessing"
    finding = "tell" if low > 0 else "do not tell"
    if is_unresolved(low, high):
        finding = "have too few records to tell"
    return [
        f"{copies}; attacks {finding} {whom} from others (strongest AUC {strongest['auc']:.3f}, "
        f"{strongest['excess']:+.3f} against {against}, {low:+.3f} to {high:+.3f})."
    ]


def _share(estimate: Part) -> str:
    return f"{100 * estimate['value']:.0f} %"
