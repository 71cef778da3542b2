"""What the privacy figures say, and what they do not show, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iadd_fast.audit.membership import DISTANCE, ON_STUDENTS, excess
from iadd_fast.evaluation import DISTILLED, FULL

#: An interval of an AUC that holds "nothing" and is wider than this says nothing: an attack that
#: works well would lie in it too.
UNRESOLVED = 0.2
STUDENTS = {
    FULL: "students of the full data",
    "random": "students of real subsets of the same size",
    DISTILLED: "students of the distilled set",
}


def verdict(result: Mapping[str, Any]) -> list[str]:
    """The findings on the set itself: copies, nearness, membership, first images."""
    own = result["sets"][DISTILLED]
    targets = result["membership"]["targets"]
    by_method = {t["method"]: t for t in targets if t["population"] != "initial images"}
    sentences = [
        _in_short(own, [t for t in targets if t["method"] == DISTILLED]),
        _copies(own, result["settings"]["quantile"]),
        _nearness(own, result["control"]),
    ]
    sentences += [_membership(by_method[name]) for name in (DISTILLED, FULL, "random")]
    sentences += _shift(by_method[DISTILLED])
    sentences += _distance(by_method[DISTILLED])
    for target in targets:
        if target["method"] == DISTILLED and target["population"] == "initial images":
            sentences += [_membership(target), *_distance(target)]
    if own["origin"] is not None:
        sentences.append(_origin(own["origin"]))
    return sentences


def is_unresolved(low: float, high: float) -> bool:
    """Whether the interval of an AUC less one half holds 0 and much else."""
    return low <= 0 <= high and high - low > UNRESOLVED


def _in_short(own: Mapping[str, Any], targets: Sequence[Mapping[str, Any]]) -> str:
    found: list[str] = []
    sought: list[str] = []
    unresolved: list[str] = []
    (found if own["flagged"] else sought).append("near copies of training records")
    for target in targets:
        names = [name for name in (target["worst"], DISTANCE) if name in target["attacks"]]
        intervals = [excess(target["attacks"][name])[1] for name in names]
        leaks = any(low > 0 for low, _ in intervals)
        wide = any(is_unresolved(*ends) for ends in intervals)
        what = (
            "a way to tell its first images from other records"
            if target["population"] == "initial images"
            else "a way to tell training records from others"
        )
        if names:
            (found if leaks else unresolved if wide else sought).append(what)
    parts = [
        f"{told}: {'; '.join(items)}"
        for told, items in (
            ("Found", found),
            ("Looked for and not found", sought),
            ("Too few records to say", unresolved),
        )
        if items
    ]
    return ". ".join(parts) + ". What was not looked for stands at the end of the section."


def _copies(own: Mapping[str, Any], quantile: float) -> str:
    count = own["samples"]
    spaces = own["spaces"]
    expected = quantile * count
    if own["flagged"] == 0:
        return (
            f"No synthetic sample ({count:,} looked at) is a near copy of a training record: none "
            "lies as close to one as the closest 1 % of held-out real samples do, in pixels, in "
            "correlation or in features."
        )
    parts = ", ".join(
        f"{entry['flagged']:,} in {space} (p = {entry['flagged_by_chance']:.2g})"
        for space, entry in spaces.items()
        if entry["flagged"]
    )
    return (
        f"{own['flagged']:,} of {count:,} synthetic samples lie as close to a training record as "
        f"only the closest 1 % of held-out real samples do: {parts}; {expected:.2g} a space would "
        "be flagged if they were as close as other real samples. They are shown below."
    )


def _nearness(own: Mapping[str, Any], control: Mapping[str, Any] | None) -> str:
    share = own["spaces"]["pixels"]["share_nearer_to_train"]
    low, high = share["interval"]
    text = (
        f"{_percent(share['value'])} of the synthetic samples are nearer to a training than to a "
        f"held-out record in pixels (95 % interval {_percent(low)} to {_percent(high)}; 50 % if "
        "nothing leaks and both parts are alike)."
    )
    if control is None:
        return text + " There is no validation part to check whether they are alike."
    real = control["pixels"]
    low, high = real["interval"]
    return (
        text + f" Of real validation samples, which are copies of neither, "
        f"{_percent(real['value'])} are ({_percent(low)} to {_percent(high)})."
    )


def _membership(target: Mapping[str, Any]) -> str:
    who = _who(target)
    if target["worst"] is None:
        return f"Membership inference on {who}: not measured ({target['reason']})."
    entry = target["attacks"][target["worst"]]
    value, (low, high), controlled = excess(entry)
    added = f"{value:+.3f} against the control" if controlled else f"{value:+.3f} against guessing"
    count = len(set(ON_STUDENTS) & target["attacks"].keys())
    if low > 0:
        finding = "finds members"
    elif high < 0:
        finding = "takes non-members for members"
    elif is_unresolved(low, high):
        finding = "has too few records to say"
    else:
        finding = "does not tell members from non-members"
    return (
        f"Membership inference on {who}: the strongest of {count} attacks "
        f"({_name(target['worst'])}) {finding}: AUC {entry['auc']:.3f}, {added} (interval "
        f"{low:+.3f} to {high:+.3f}, allowing for the choice among {len(ON_STUDENTS)})."
    )


def _distance(target: Mapping[str, Any]) -> list[str]:
    """What an attacker learns from the set itself, without any student."""
    entry = target["attacks"].get(DISTANCE)
    if entry is None:
        return []
    value, (low, high), controlled = excess(entry)
    whom = (
        f"its {target['members']:,} first images"
        if target["population"] == "initial images"
        else "training records"
    )
    finding = "tells" if low > 0 else "does not tell"
    if is_unresolved(low, high):
        finding = "is of too few records to tell"
    against = "the control" if controlled else "guessing"
    return [
        f"From the set alone, the distance of a record to the nearest synthetic sample {finding} "
        f"{whom} from test records: AUC {entry['auc']:.3f}, {value:+.3f} against {against} "
        f"({low:+.3f} to {high:+.3f}); a published real subset gives its members away entirely."
    ]


def _shift(target: Mapping[str, Any]) -> list[str]:
    """Said where networks that saw neither side tell training from test records."""
    entry = target["attacks"].get("loss")
    if entry is None:
        return []
    if entry["control"] is None:
        return ["There is no control: no network of real subsets did without enough members."]
    control = entry["control"]
    if control["holds"]:
        return []
    low, high = control["interval"]
    return [
        f"Training and test part differ by themselves: networks that saw neither give the loss "
        f"attack an AUC of {control['auc']:.3f} ({low:.3f} to {high:.3f}). An AUC above is "
        "therefore judged by its difference from that control."
    ]


def _origin(origin: Mapping[str, Any]) -> str:
    parts = []
    for space, entry in origin["spaces"].items():
        low, high = entry["first_interval"]
        parts.append(
            f"{entry['first']:,} of {len(entry['rank']):,} in {space} ({_percent(low)} to "
            f"{_percent(high)})"
        )
    return (
        "The set started from real images, the records at most risk. So many samples still have "
        f"their own first image as their nearest training record: {'; '.join(parts)}. With one in "
        f"{next(iter(origin['spaces'].values()))['of']:,} it would be chance."
    )


def limits(result: Mapping[str, Any]) -> list[str]:
    """What these tests do not show, with what they could have found."""
    attacked = result["membership"]
    others = attacked["non_members"]
    sizes = [
        f"{target['detectable']:.3f} on {_who(target)} ({target['members']:,} members)"
        for target in attacked["targets"]
        if target.get("detectable") is not None and target["method"] in (FULL, "random", DISTILLED)
    ]
    unresolved = sorted(
        {
            f"{100 * rate['fpr']:g} %"
            for target in attacked["targets"]
            for entry in target["attacks"].values()
            for rate in entry["tpr"]
            if rate["tpr"] is None
        }
    )
    networks = result["settings"]["networks"]
    sentences = [
        "No guarantee: these are attacks that were tried. A bound on what any attacker learns, "
        "such as differential privacy, follows from how a set is made, not from a measurement.",
        "Averages: an AUC is over all members. A few records may be exposed while it is near 0.5; "
        "the true-positive rates at low false-positive rates look at them, as far as the counts "
        "reach.",
        f"Counts: against {others:,} non-members, the smallest AUC above 0.5 that these numbers "
        f"would find four times out of five: {'; '.join(sizes)}. An effect below that is not "
        "excluded.",
    ]
    if unresolved:
        sentences.append(
            f"The true-positive rate at {' and '.join(unresolved)} false positives is not given: "
            f"{others:,} non-members do not resolve it."
        )
    return [
        *sentences,
        f"Stronger attackers: the references are {networks['random']} networks trained on small "
        "real subsets. An attacker who trains many shadow models by the same method (LiRA; for a "
        "distilled set that means distilling many times) may do better, and so may one who sees "
        "the experts, the checkpoints or the order of training.",
        "Other questions: attribute inference, property inference (such as the share of a group), "
        "reconstruction from students, and linking with other data were not tried.",
        "Distances: a sample may give a record away without lying near it in these three spaces, "
        "and a near record is not always a secret. Features come from one network that had seen "
        "the training and validation records, which may pull samples towards them.",
        "One run: figures are for this set and these networks. Another seed gives another set. "
        "Intervals are over records; they take the set, the networks and, for shares of synthetic "
        "samples, which were made together, the dependence among them only in part into account.",
        "Members are the records of the training part as loaded here: they are those that the "
        "experts saw only where the data was loaded with the same validation part as for the "
        "distillation.",
    ]


def _who(target: Mapping[str, Any]) -> str:
    who = STUDENTS.get(target["method"], f"students of {target['method']}")
    if target["population"] == "initial images":
        return f"{who}, members being its {target['members']:,} first images"
    return who


def _name(attack: str) -> str:
    return attack.replace("_", " ")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
