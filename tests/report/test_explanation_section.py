"""The explainability section: its numbers are those measured, and what is missing is said."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from iadd_fast import distill
from iadd_fast.audit import influence as influence_module
from iadd_fast.audit.explanation import explain
from iadd_fast.audit.material import Material
from iadd_fast.evaluation import DISTILLED, FULL
from iadd_fast.report.pictures import Samples
from iadd_fast.report.sections import explanation, explanation_texts
from tests.audit.explained import STUDENT, blobs, centres, distilled_set, material

UNSAFE = "<b>class"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Material, dict[str, Any]]:
    """A set of a short run with pruned weights, and what was measured on it."""
    data, folder = blobs(), tmp_path_factory.mktemp("run")
    data.class_names = (UNSAFE, "1", "2")
    distilled = distill(
        data, None, 1, "prune:threshold=0.9,every=1,learning_rate=0.5", student=STUDENT,
        out=folder, progress=False, iterations=4, steps=3, expert_epochs=1, max_start_epoch=1,
        augment="none", validation_networks=1, validation_epochs=2, validate_every=1, max_loss=1e6,
    )  # fmt: skip
    one = material(data, distilled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(influence_module, "STEPS", 10)
        return one, explain(one, folder / "metrics.jsonl", unrolled=2)


def page(made: tuple[Material, dict[str, Any]], measured: dict[str, Any] | None = None) -> str:
    one, found = made
    view = explanation.view(
        found if measured is None else measured, Samples(one.distilled, one.data)
    )
    environment = Environment(
        loader=PackageLoader("iadd_fast.report"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("explanation.html").render(view=view)


@pytest.fixture(scope="module")
def text(made: tuple[Material, dict[str, Any]]) -> str:
    """The page of what was measured."""
    return page(made)


def test_the_numbers_are_those_measured(made: tuple[Material, dict[str, Any]], text: str) -> None:
    """Breaks when a layer, an area or a distance on the page is another's."""
    found = made[1]
    for row in found["importance"]["layers"]:
        assert f'"rowheader">{row["layer"]}<' in text
        assert f">{row['mean']:.4g}</td>" in text
        share = found["importance"]["course"]["loss_share"]["values"][row["layer"]][-1]
        assert f">{100 * share:.1f} %</td>" in text
    for group in found["deletion"]["groups"].values():
        for area in group["areas"].values():
            assert f">{explanation_texts.signed(area['both'])}</td>" in text
    for sample in found["nearest"]["samples"]:
        for space in ("pixels", "features"):
            assert f" at {sample[space]['distance'][0]:.3g}" in text
    for sample in found["influence"]["samples"]:
        for entry in sample["helps"]:
            assert f"({entry['mean']:+.2g} ± {entry['spread']:.2g}" in text
    total = found["importance"]["pruned"]
    assert total > 0
    assert f"{total:,} of {STUDENT.num_parameters:,} weights of the set" in text
    assert "first-order" in text


def test_the_page_can_be_read_by_all(text: str) -> None:
    """Breaks when ids repeat, a figure has no words, or a class name is taken for markup."""
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert len(re.findall(r"<svg", text)) == len(re.findall(r'<svg [^>]*role="img"', text))
    assert all(label for label in re.findall(r'<svg [^>]*aria-label="([^"]*)"', text))
    assert "<img src" not in re.sub(r'<img src="[^"]*" alt="[^"]+">', "", text)
    assert UNSAFE not in text
    assert "&lt;b&gt;class" in text


@pytest.mark.parametrize("recorded", [True, False])
def test_an_older_log_says_not_recorded(
    made: tuple[Material, dict[str, Any]], recorded: bool
) -> None:
    """Breaks when a run without the newer keys, or without a log, has no page."""
    measured = copy.deepcopy(made[1])
    importance = measured["importance"]
    importance["pruned_course"] = None
    for key in importance["course"]:
        if key != "filter_run":
            importance["course"][key] = None
    if not recorded:
        importance["course"], importance["recorded"] = {}, False
    text = page(made, measured)
    assert text.count(explanation.NOT_RECORDED) == 4
    assert "When they were pruned was not recorded" in text
    assert ">not recorded</td>" in text


def test_a_log_that_fits_no_network_has_a_page(made: tuple[Material, dict[str, Any]]) -> None:
    """Breaks when filters of other numbers in each record, or shares that are not known, end it."""
    measured = copy.deepcopy(made[1])
    course = measured["importance"]["course"]
    course["loss_share_unweighted"] = None
    strips, shares = course["filter_weight"]["values"], course["loss_share"]["values"]
    first, second = list(strips)[:2]
    strips[first][0], strips[first][1] = [1.0], None
    strips[second][-1] = []
    shares[next(iter(shares))][-1] = None
    text = page(made, measured)
    assert f"{len(strips) - 1} of {len(strips)} tensors" in text
    for tensor in strips:
        strips[tensor][-1] = [None]
    points = [0.5] * len(course["loss_share"]["iterations"])
    course["loss_share"]["values"] = {f"layer{number}": points for number in range(60)}
    text = page(made, measured)
    assert text.count(explanation.NOT_RECORDED) == 1
    assert text.count("Drawn are the first 50 of 60 layers.") == 2


def test_a_set_without_weights_says_so(made: tuple[Material, dict[str, Any]]) -> None:
    """Breaks when a set of plain trajectory matching or gradient matching has no page."""
    one = made[0]
    plain = distilled_set(
        one.data, centres(), torch.arange(3), config={"importance": {"name": "uniform"}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(influence_module, "STEPS", 5)
        measured = explain(
            replace(one, distilled=plain),
            unrolled=1,
        )
    text = page(made, measured)
    assert "plain trajectory matching (MTT)" in text
    assert "there is nothing to test" in text
    assert "Areas between the curves" not in text
    assert "Weights by layer" not in text


def test_what_was_not_measured_is_said(made: tuple[Material, dict[str, Any]]) -> None:
    """Breaks when diverged networks leave a page with an empty figure or an error."""
    measured = copy.deepcopy(made[1])
    measured["influence"] = {"measured": False, "reason": "everything diverged"}
    text = page(made, measured)
    assert "Influence was not measured: everything diverged." in text
    assert "explanation-influence" not in text
    assert "Helps: not measured" in text


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("separates", "separates from chance"),
        ("layers", "says no more than which layers matter"),
        ("layers_reversed", "ranks layers the other way round"),
        ("reversed", "points the other way"),
        ("nothing", "means nothing here"),
        ("unresolved", "not resolved"),
    ],
)
def test_the_verdict_is_said_in_words(
    made: tuple[Material, dict[str, Any]], verdict: str, words: str
) -> None:
    """Breaks when a finding against the weights is worded as one for them."""
    group = {**made[1]["deletion"]["groups"][FULL], "verdict": verdict}
    text = explanation_texts.tested(DISTILLED, group)
    assert words in text
    assert text.startswith("On 4 networks trained on the distilled set")
    assert explanation_texts.signed(group["areas"]["learned_against_random"]["both"]) in text


def test_first_order_that_does_not_hold_is_not_praised(
    made: tuple[Material, dict[str, Any]],
) -> None:
    """Breaks when the sentence does not follow the measured correlation."""
    measured = copy.deepcopy(made[1]["influence"])
    for value, words in ((0.9, "orders well"), (0.5, "orders roughly"), (0.1, "hardly orders")):
        measured["check"]["rank_correlation"] = [value, value]
        assert any(words in sentence for sentence in explanation_texts.helped(measured))
    measured["check"]["rank_correlation"] = [None]
    assert any("could not be measured" in text for text in explanation_texts.helped(measured))


def test_what_is_drawn_is_capped(
    made: tuple[Material, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when a set of many samples fills the page, or only its first class is drawn."""
    monkeypatch.setattr(explanation, "SAMPLES", 2)
    text = page(made)
    assert text.count("<h3>Sample ") == 2
    assert "2 of 3 samples" in text
    assert explanation._in_turn([0, 0, 0, 1, 1, 2], 3) == [0, 3, 5]


def test_soft_and_many_labels_need_no_more(made: tuple[Material, dict[str, Any]]) -> None:
    """Breaks when probabilities are taken for classes."""
    one = made[0]
    labels = torch.full((3, 3), 0.1) + 0.7 * torch.eye(3)
    soft = distilled_set(one.data, centres(), labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(influence_module, "STEPS", 5)
        measured = explain(
            replace(one, distilled=soft),
            unrolled=1,
        )
    assert [entry["label"] for entry in measured["influence"]["samples"]] == [0, 1, 2]
    assert "Sample 3, class 2" in page((replace(one, distilled=soft), measured))  # fmt: skip


def test_the_log_of_a_run_reaches_the_page(
    made: tuple[Material, dict[str, Any]], text: str
) -> None:
    """Breaks when the keys that a run writes are not those that the page reads."""
    course = made[1]["importance"]["course"]
    assert all(course[key] for key in ("layer_weight", "filter_weight", "loss_share"))
    assert made[1]["importance"]["pruned_course"]["pruned"][-1] > 0
    assert explanation.NOT_RECORDED not in text
