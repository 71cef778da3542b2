"""What a set and its log say of the weights, the nearest real samples, and the whole of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from iadd_fast.audit import influence as influence_module
from iadd_fast.audit.explanation import explain
from iadd_fast.audit.explanation_importance import COUNTS, POINTS, importance
from iadd_fast.audit.explanation_neighbours import nearest_real
from iadd_fast.audit.material import Material
from iadd_fast.importance.record import weight_record
from iadd_fast.metrics import Metrics
from tests.audit.explained import STUDENT, blobs, centres, distilled_set, material


@pytest.fixture(scope="module")
def copied() -> Material:
    """A set whose second sample is a copy of a training sample of another class."""
    data = blobs()
    images = centres().clone()
    images[1] = data.train.images[4]
    return material(data, distilled_set(data, images, torch.arange(3)), networks=2)


def a_set(**change: Any) -> Any:
    return distilled_set(blobs(), centres(), torch.arange(3), **change)


def test_nearest_are_found_with_their_labels(copied: Material) -> None:
    """Breaks when indices belong to another part, or distances, labels and samples are mixed up."""
    found = nearest_real(copied, 4)
    train = copied.train
    for index, sample in enumerate(found["samples"]):
        apart = (train.images - copied.distilled.images[index]).flatten(1).norm(dim=1)
        order = apart.argsort()[:4].tolist()
        entry = sample["pixels"]
        assert entry["index"] == order
        assert entry["distance"] == pytest.approx(apart[order].tolist(), rel=1e-4)
        assert entry["label"] == train.labels[order].tolist()
        assert entry["same_class"] == [label == index for label in entry["label"]]
    copy = found["samples"][1]
    assert copy["pixels"]["index"][0] == copy["features"]["index"][0] == 4
    assert copy["pixels"]["distance"][0] == 0.0
    assert copy["features"]["distance"][0] == pytest.approx(0.0, abs=1e-5)
    own = [sample["pixels"]["same_class"][0] for sample in found["samples"]]
    assert found["spaces"]["pixels"]["nearest_same_class"] == sum(own)
    assert found["spaces"]["pixels"]["by_chance"] == pytest.approx(1 / 3, abs=0.02)


def test_more_neighbours_than_records_are_not_asked_for(copied: Material) -> None:
    """Breaks when a small training part is an error."""
    assert nearest_real(copied, 10_000)["count"] == len(copied.train)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"method": "gradient"}, "gradient matching"),
        ({"importance": {"name": "uniform"}}, "MTT"),
        ({}, "no weights"),
    ],
)
def test_a_set_without_weights_is_said_to_have_none(config: dict[str, Any], word: str) -> None:
    """Breaks when the page of such a set shows weights, or does not say why there are none."""
    found = importance(a_set(config=config), STUDENT, None)
    assert found["kind"] == "none"
    assert word in found["reason"]
    assert found["layers"] is None
    assert found["pruned"] is None


def test_layers_and_filters_are_those_of_the_set() -> None:
    """Breaks when w is taken for v = w^2, or pruned parameters are lost."""
    weight = torch.rand(STUDENT.num_parameters, generator=torch.Generator().manual_seed(0))
    weight[:24] = 0.0
    found = importance(a_set(weight=weight), STUDENT, None)
    value = weight.double().square()
    assert found["kind"] == "learned"
    assert sum(row["share_of_weight"] for row in found["layers"]) == pytest.approx(1.0)
    for row, parts in zip(found["layers"], STUDENT.layers().values(), strict=True):
        own = torch.cat([value[part] for part in parts])
        assert row["mean"] == pytest.approx(float(own.mean()))
        assert row["pruned"] == int((own == 0).sum())
    assert found["pruned"] == 24
    # 24 weights of the first tensor, 16 a filter
    assert found["filters"][0]["pruned_share"][:3] == [1.0, 0.5, 0.0]
    assert found["course"] == {}
    assert found["recorded"] is False
    mask = importance(a_set(weight=(weight > 0.5).float()), STUDENT, None)
    assert mask["kind"] == "mask"


def test_the_course_is_what_was_logged() -> None:
    """Breaks when the last iteration is lost in thinning, or changes between points are."""
    weight = torch.ones(STUDENT.num_parameters)
    rows: list[dict[str, Any]] = []
    for iteration in range(200):
        weight[iteration // 20] = 0.0
        row: dict[str, Any] = {"iteration": iteration, "pruned": iteration // 20 + 1}
        if iteration % 2:
            row |= weight_record(STUDENT, weight)
        rows.append(row)
    found = importance(a_set(weight=weight), STUDENT, Metrics(rows))
    course = found["course"]["layer_weight"]
    assert len(course["iterations"]) == POINTS
    assert (course["iterations"][0], course["iterations"][-1]) == (1, 199)
    assert course["recorded"] == 100
    first = next(iter(STUDENT.layers()))
    at = course["iterations"].index(course["iterations"][30])
    own = [row for row in rows if row["iteration"] == course["iterations"][at]]
    assert course["values"][first][at] == own[0]["layer_weight"][first]
    strips = found["course"]["filter_weight"]["values"]
    assert all(len(values) == POINTS for values in strips.values())
    pruned = found["pruned_course"]
    assert pruned["pruned"] == [*range(1, 11), 10]
    assert pruned["iterations"] == [*range(0, 200, 20), 199]
    assert pruned["changes"] == 11 <= COUNTS
    assert found["course"]["loss_share"] is None


def test_an_older_log_is_read(tmp_path: Path) -> None:
    """Breaks when a log without the newer keys is an error instead of not recorded."""
    rows = [{"iteration": i, "loss": 1.0, "layer_weight": {"a": 1.0}} for i in range(3)]
    found = importance(a_set(weight=torch.rand(STUDENT.num_parameters)), STUDENT, Metrics(rows))
    assert found["course"]["layer_weight"]["values"] == {"a": [1.0, 1.0, 1.0]}
    for key in ("filter_weight", "pruned_by_layer", "loss_share", "loss_share_unweighted"):
        assert found["course"][key] is None
    assert found["pruned_course"] is None


def test_everything_goes_into_json(
    copied: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when a tensor, NaN or infinity gets into the report, or a part is left out."""
    monkeypatch.setattr(influence_module, "STEPS", 5)
    log = tmp_path / "metrics.jsonl"
    log.write_text(json.dumps({"iteration": 0, "pruned": 0}) + "\n")
    found = explain(copied, log, networks=1, unrolled=1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"class_names", "importance", "deletion", "nearest", "influence"}
    assert found["deletion"]["measured"] is False
    assert found["importance"]["recorded"] is True


@pytest.mark.parametrize("name", ["test_images", "networks", "draws", "unrolled"])
def test_numbers_out_of_range_are_refused(copied: Material, name: str) -> None:
    """Breaks when a count of 0 is found out only after minutes, or not at all."""
    with pytest.raises(ValueError, match=f"{name}: got 0; takes"):
        explain(copied, **{name: 0})  # type: ignore[arg-type]


def test_a_log_that_is_not_there_is_an_error(copied: Material, tmp_path: Path) -> None:
    """Breaks when a mistyped path gives a page that says 'not recorded'."""
    with pytest.raises(FileNotFoundError, match="metrics"):
        explain(copied, tmp_path / "nothing.jsonl")
