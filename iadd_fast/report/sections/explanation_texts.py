"""The sentences of the explainability section."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from iadd_fast.evaluation import DISTILLED, FULL

GROUPS = {
    FULL: "networks trained on all real data",
    DISTILLED: "networks trained on the distilled set",
}
_VERDICTS = {
    "separates": (
        "the learned importance separates from chance: parameters that it ranks high matter more "
        "than as many drawn at random from the same layers"
    ),
    "layers": (
        "the learned importance says no more than which layers matter: its order beats one of "
        "chance, but is not told from chance within the same layers"
    ),
    "layers_reversed": (
        "the learned importance ranks layers the other way round: what it ranks high matters less "
        "than an order of chance, and within layers it is not told from chance"
    ),
    "reversed": (
        "the learned importance points the other way: parameters that it ranks high matter less "
        "than as many drawn at random from the same layers"
    ),
    "nothing": (
        "the learned importance is not told from chance: as a map of which parameters matter it "
        "means nothing here that this test can resolve"
    ),
    "unresolved": "one network and equal draws give no interval: whether the map means anything "
    "is not resolved",
}


def weights(measured: Mapping[str, Any]) -> list[str]:
    """What the weights are, where they lie and which were pruned."""
    layers = measured["layers"]
    if measured["kind"] in ("none", "equal"):
        return [measured["reason"]]
    sentences = [measured["reason"]] if measured["reason"] else []
    if layers is None:
        return [*sentences, "The layers of the student are not known."]
    top, bottom = max(layers, key=_mean), min(layers, key=_mean)
    sentences.append(
        f"The mean squared weight is highest in {top['layer']} ({top['mean']:.3g}) and lowest in "
        f"{bottom['layer']} ({bottom['mean']:.3g}). Plain trajectory matching has 1 everywhere."
    )
    return sentences


def pruned(measured: Mapping[str, Any]) -> str:
    """Which parameters do not count, and since when."""
    count, course = measured["pruned"], measured["pruned_course"]
    if count is None:
        return ""
    if count == 0 and (course is None or not any(course["pruned"])):
        return "No parameter was pruned: no weight of the set is 0."
    total = measured["parameters"]
    text = f"{count:,} weights of the set are 0"
    if total:
        text = f"{count:,} of {total:,} weights of the set ({100 * count / total:.1f} %) are 0"
        held = [row for row in measured["layers"] or [] if row["pruned"]]
        text += "".join(
            f"{', ' if number else ': '}{row['pruned']:,} of {row['parameters']:,} in "
            f"{row['layer']}"
            for number, row in enumerate(held)
        )
    if course is None:
        return f"{text}. When they were pruned was not recorded."
    if measured["kind"] == "mask":
        low, high = min(course["pruned"]), max(course["pruned"])
        return f"{text}. Over the run the masks left out between {low:,} and {high:,}."
    steps = list(zip(course["iterations"], course["pruned"], strict=True))
    first = next((iteration for iteration, number in steps if number), None)
    if first is None:
        return f"{text}."
    last = next(iteration for iteration, number in steps if number == steps[-1][1])
    return (
        f"{text}. The first were pruned by iteration {first:,}, the last by {last:,}; at the end "
        f"of the run there were {steps[-1][1]:,}."
    )


def tested(method: str, group: Mapping[str, Any]) -> str:
    """Whether the weights mean anything for one group of networks."""
    areas = group["areas"]
    layers = areas["learned_against_within_layers"]["both"]
    chance = areas["learned_against_random"]["both"]
    yardstick = areas["movement_against_random"]["both"]
    return (
        f"On {group['networks']} {GROUPS[method]}, {_VERDICTS[group['verdict']]} (area between "
        f"the curves, above 0 where what is ranked high matters more: {signed(layers)} points of "
        f"accuracy against chance within layers, {signed(chance)} against chance; the yardstick, "
        f"the size of change, has {signed(yardstick)})."
    )


def helped(measured: Mapping[str, Any]) -> list[str]:
    """What the influence says in all, and how far it can be trusted."""
    if not measured["measured"]:
        return [f"Influence was not measured: {measured['reason']}."]
    own = measured["own_class_first"]
    sentences = []
    if own is not None:
        sentences.append(
            f"{own['count']:,} of {own['of']:,} synthetic samples help their own class more than "
            f"any other ({100 * own['low']:.0f} to {100 * own['high']:.0f} %)."
        )
    check = measured["check"]
    found = [value for value in check["rank_correlation"] if value is not None]
    if not found:
        return [*sentences, "How well first order predicts a removal could not be measured."]
    mean = statistics.fmean(found)
    says = "orders well" if mean >= 0.7 else "orders roughly" if mean >= 0.4 else "hardly orders"
    sentences.append(
        f"Influence is first-order: it {says} what happens when a sample is really left out and "
        f"the network trained again (rank correlation {mean:.2f}, {min(found):.2f} to "
        f"{max(found):.2f} over {len(found)} networks, {len(check['samples'])} samples by "
        f"{check['pairs'] // len(check['samples'])} classes; same sign in "
        f"{100 * check['same_sign']:.0f} %)."
    )
    return sentences


def near(measured: Mapping[str, Any]) -> str:
    """Of which class the nearest real samples are."""
    parts = []
    for space, entry in measured["spaces"].items():
        parts.append(
            f"in {'the space of the transform' if space == 'pixels' else 'feature space'} "
            f"{entry['nearest_same_class']:,} of {entry['of']:,} "
            f"({100 * entry['low']:.0f} to {100 * entry['high']:.0f} %; "
            f"{100 * entry['by_chance']:.0f} % by chance)"
        )
    return f"The nearest real sample is of the synthetic sample's own class {' and '.join(parts)}."


def how(measured: Mapping[str, Any]) -> list[str]:
    """How everything was measured, and what it does not show."""
    deletion, influence = measured["deletion"], measured["influence"]
    near, sentences = measured["nearest"], []
    if deletion["measured"]:
        sentences.append(
            "Deletion curves: the given share of the parameters is set back to where the network "
            f"started, the rest stays as trained; {deletion['test_images']:,} of "
            f"{deletion['of_test_images']:,} test samples, the same everywhere; "
            f"{deletion['draws']} orders of chance. An area is that between two curves over the "
            "share, mean of top first and bottom first; intervals of 95 % over networks and orders "
            "of chance, not over test samples. Equal weights stand in an order of chance. Setting "
            "parameters back shows what a trained network needs, which is not what makes a set "
            "easy to learn."
        )
    if influence["measured"]:
        through = influence["window"] if influence["window"] < influence["steps"] else "all"
        sentences.append(
            "Influence: minus the derivative of a class's mean cross-entropy on held-out real "
            f"samples ({influence['held_out']:,} of the {influence['part']} part) by the weight "
            "of a synthetic sample in every inner step, exact by the meta-gradient, so to first "
            "order the rise of that loss when the sample is left out: nats, above 0 helps. "
            f"{influence['networks_used']} of {influence['networks']} fresh networks, "
            f"{influence['steps']} steps of plain SGD at lr {influence['lr']:.4g}, the derivative "
            f"through {through} of them; held-out accuracy "
            f"{min(influence['accuracy']):.1f} to {max(influence['accuracy']):.1f} %. "
            f"Two networks' influences rank alike with a correlation of "
            f"{_or_unknown(influence['agreement'])}. Beyond first order, for longer training and "
            "for several samples left out together it says nothing."
        )
    sentences.append(
        f"Nearest real samples: Euclidean, among {near['among']:,} training samples, by the values "
        "of the set's transform and by what the last layer of one full-data network reads. Near "
        "does not mean derived from."
    )
    return sentences


def signed(found: Mapping[str, float | None]) -> str:
    """A value and its interval."""
    if found["low"] is None:
        return f"{found['value']:+.2f} (interval not known)"
    return f"{found['value']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"


def influences(entries: Sequence[Mapping[str, Any]], names: Sequence[str], networks: int) -> str:
    """Classes with influence and spread; marked where not all networks agree on the sign."""
    texts = []
    for entry in entries:
        spread = "" if entry["spread"] is None else f" ± {entry['spread']:.2g}"
        doubt = "" if entry["networks_agreeing"] == networks else ", sign not in all networks"
        texts.append(f"{names[entry['class']]} ({entry['mean']:+.2g}{spread}{doubt})")
    return ", ".join(texts) or "none"


def _mean(row: Mapping[str, Any]) -> float:
    return float(row["mean"])


def _or_unknown(value: float | None) -> str:
    return "unknown size (one network)" if value is None else f"{value:.2f}"
