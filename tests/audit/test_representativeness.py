"""The whole measurement on networks whose mistakes are known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit.coverage import coverage
from iadd_fast.audit.material import Material
from iadd_fast.audit.representativeness import represent
from iadd_fast.data import Data, Split
from iadd_fast.data.transform import Identity
from iadd_fast.evaluation_networks import TrainedNetworks
from iadd_fast.students import Student, mlp

CLASSES = 3
NAMES = ("a", "b", "c")
# One pixel a class, then one that only the distilled networks fall for, then noise.
PIXELS = 8
MARK = 3


def samples(per_class: int, seed: int) -> Split:
    """Class c is bright at pixel c; a quarter of class b is bright at MARK as well."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    images = 0.1 * torch.randn(len(labels), 1, 1, PIXELS, generator=draw)
    images[torch.arange(len(labels)), 0, 0, labels] += 1.0
    marked = (labels == 1) & (torch.arange(len(labels)) % 4 == 0)
    images[marked, 0, 0, MARK] += 1.0
    return Split(images, labels)


def theta(student: Student, seed: int, fooled: bool) -> Tensor:
    """Reads each class off its pixel; where ``fooled``, MARK speaks for class c three times."""
    draw = torch.Generator().manual_seed(seed)
    weight = 4.0 * torch.eye(CLASSES, PIXELS) + 0.1 * torch.randn(CLASSES, PIXELS, generator=draw)
    if fooled:
        weight[2, MARK] = 12.0
    return torch.cat([weight.flatten(), torch.zeros(CLASSES)])


def material(
    networks: int = 3, distilled: DistilledSet | None = None, test: Split | None = None
) -> Material:
    student = mlp(inputs=(1, 1, PIXELS), classes=CLASSES, depth=1)
    train, validation, own = samples(40, 1), samples(10, 2), samples(40, 3)
    test = own if test is None else test
    data = Data("marks", train, validation, test, NAMES, Identity(), "f" * 64)
    if distilled is None:
        chosen = train.subset([4 * number for number in range(30)])
        distilled = made_of(chosen.images, chosen.labels, student)
    trained = {
        method: TrainedNetworks(
            method,
            "mlp",
            student,
            torch.stack([theta(student, seed, fooled) for seed in range(networks)]),
            [(distilled.images, distilled.labels)] * networks,
        )
        for method, fooled in (("iadd", True), ("full", False), ("random", False))
    }
    return Material(distilled, data, train, validation, test, trained, torch.device("cpu"), 0)


def made_of(images: Tensor, labels: Tensor, student: Student) -> DistilledSet:
    return DistilledSet(
        images=images,
        labels=labels,
        lr=0.1,
        class_names=NAMES,
        transform=Identity(),
        student_spec=student.spec,
        data_name="marks",
        data_fingerprint="f" * 64,
    )


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    marks = [bool(image[0, 0, MARK] > 0.5) for image in samples(40, 3).images]
    return represent(
        material(), {"mark": ["yes" if mark else "no" for mark in marks], "row": range(120)}
    )


def test_it_is_json_without_nan(measured: dict[str, Any]) -> None:
    """Breaks when a tensor, a numpy number or NaN gets into report.json."""
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


def test_the_slice_that_is_lost_comes_first(measured: dict[str, Any]) -> None:
    """Breaks when slices are sorted the other way, or values belong to other samples."""
    rows = measured["slices"]["rows"]
    first = rows[0]
    assert (first["slice"], first["group"], first["count"]) == ("mark", "yes", 10)
    assert first["accuracy"]["full"]["value"] == 100.0
    assert first["accuracy"]["distilled"]["value"] == 0.0
    assert first["gap"]["value"] == 100.0
    assert first["gap"]["low"] > 50.0
    of_b = next(row for row in rows if (row["slice"], row["group"]) == ("class", "b"))
    assert of_b["gap"]["value"] == pytest.approx(25.0)
    gaps = [row["gap"]["value"] for row in rows if row["resolved"]]
    assert gaps == sorted(gaps, reverse=True)
    assert measured["overall"]["gap"]["value"] == pytest.approx(100 * 10 / 120)
    assert measured["slices"]["notes"]["row"] == "cut at its quartiles"


def test_rare_cases_are_the_marked(measured: dict[str, Any]) -> None:
    """Breaks when rare cases are others than those lost, or what they share is not found."""
    marked = [index for index, image in enumerate(samples(40, 3).images) if image[0, 0, MARK] > 0.5]
    rare = measured["rare"]
    assert sorted(rare["indices"]) == marked
    assert rare["opposite"] == rare["lost_by_random"] == 0
    assert rare["common"][0]["group"] == "yes"
    assert all(one["predicted"] == "c" and one["label"] == "b" for one in rare["samples"])
    assert measured["agreement"]["lost"]["distilled"]["value"] == pytest.approx(10 / 120)
    assert measured["agreement"]["disagreement"]["largest"][0]["samples"] == pytest.approx(10.0)
    assert measured["difficulty"][0]["accuracy"]["full"]["value"] == 100.0


def test_small_groups_are_said_not_to_be_resolved() -> None:
    """Breaks when two samples top the list of worst slices."""
    one = material()
    found = represent(one, {"few": ["tiny" if i in (40, 44) else "rest" for i in range(120)]})
    rows = found["slices"]["rows"]
    tiny = next(row for row in rows if row["group"] == "tiny")
    assert tiny["gap"]["value"] == 100.0
    assert not tiny["resolved"]
    assert [row["resolved"] for row in rows] == sorted(
        (row["resolved"] for row in rows), reverse=True
    )


def test_equal_seeds_give_equal_results(measured: dict[str, Any]) -> None:
    """Breaks when something is drawn from a global generator."""
    torch.manual_seed(1)
    one = represent(material())
    torch.manual_seed(2)
    assert represent(material()) == one
    assert one["coverage"] == measured["coverage"]


def test_bare_material() -> None:
    """Breaks on one network, no validation part, a class without test samples and soft labels."""
    own = material(networks=1)
    few = samples(20, 5).subset(list(range(40)))
    soft = torch.eye(CLASSES)[torch.arange(CLASSES)] * 0.7 + 0.1
    one_each = made_of(samples(1, 6).images, soft, own.trained["full"].student)
    bare = replace(
        material(1, one_each, few),
        validation=Split(own.train.images[:0], own.train.labels[:0]),
    )
    found = represent(bare)
    json.dumps(found, allow_nan=False)
    assert found["slices"]["absent"] == ["c"]
    assert found["agreement"]["pairs"]["full_full"] is None
    assert found["calibration"]["distilled"]["temperature"]["validation"] is None
    figures = found["coverage"]["figures"]
    assert figures["recall"]["value"] is None and figures["recall"]["reason"]
    assert not found["coverage"]["kernel"]["unbiased"]
    assert found["overall"]["accuracy"]["full"]["spread"] is None


def test_a_diverged_network_is_counted_not_spread() -> None:
    """Breaks when NaN logits make NaN of every figure."""
    own = material()
    own.trained["iadd"].thetas[1] = float("nan")
    found = represent(own)
    json.dumps(found, allow_nan=False)
    assert found["diverged"] == {"distilled": 1, "full": 0, "random": 0}


def test_slices_that_do_not_fit_are_refused() -> None:
    """Breaks when a column of another length is cut."""
    with pytest.raises(ValueError, match="'site' has values of shape"):
        represent(material(), {"site": ["a"] * 119})


def coverage_of(images: Tensor, labels: Tensor) -> dict[str, Any]:
    one = material()
    return coverage(material(3, made_of(images, labels, one.trained["full"].student)))


def test_a_real_subset_is_as_good_as_real_subsets() -> None:
    """Breaks when the yardstick is drawn from the reference, or compares other class shares."""
    fresh = samples(10, 11)
    found = coverage_of(fresh.images, fresh.labels)
    for name in ("precision", "density", "recall", "coverage"):
        perfect = found["figures"][name]["perfect"]
        slack = 0.05 + (perfect["high"] - perfect["low"]) / 2
        assert abs(found["figures"][name]["value"] - perfect["mean"]) < 2 * slack, name
    assert found["figures"]["coverage"]["expected"] == pytest.approx(
        found["figures"]["coverage"]["perfect"]["mean"], abs=0.1
    )
    assert 0.8 < found["figures"]["recall"]["perfect"]["mean"] < 0.99
    assert found["kernel"]["largest_p"] > 0.05
    assert found["reference"] + found["pool"] == found["real_in_all"] == 150


def test_few_real_samples_are_on_average_perfect() -> None:
    """Breaks when balls for coverage, wide for few samples, are taken for the others' or mixed."""
    found = []
    for seed in range(8):
        fresh = samples(2, 20 + seed)
        found.append(coverage_of(fresh.images, fresh.labels)["figures"])
    assert found[0]["coverage"]["k"] > 5
    for name, slack in (("density", 0.25), ("coverage", 0.08), ("precision", 0.08)):
        own = sum(figures[name]["value"] for figures in found) / len(found)
        perfect = sum(figures[name]["perfect"]["mean"] for figures in found) / len(found)
        assert own == pytest.approx(perfect, abs=slack), name


def test_what_is_missing_and_what_is_false_is_seen() -> None:
    """Breaks when precision and recall are exchanged, or the kernel test has no power."""
    copies = samples(1, 12)
    repeated = copies.images.repeat_interleave(10, 0) + 1e-3 * torch.randn(30, 1, 1, PIXELS)
    narrow = coverage_of(repeated, copies.labels.repeat_interleave(10))
    assert narrow["figures"]["recall"]["value"] < narrow["figures"]["recall"]["perfect"]["low"]
    assert narrow["figures"]["coverage"]["value"] < narrow["figures"]["coverage"]["perfect"]["low"]
    assert narrow["kernel"]["largest_p"] <= 0.01
    fresh = samples(10, 13)
    false = coverage_of(fresh.images + 3.0, fresh.labels)
    assert false["figures"]["precision"]["value"] == 0.0
    assert false["figures"]["density"]["value"] == 0.0
    assert false["kernel"]["largest_p"] <= 0.01
    assert false["kernel"]["by_space"][0]["mmd2"] > 0.05


def test_the_class_that_is_left_out_is_named() -> None:
    """Breaks when coverage by class is that of other classes."""
    fresh = samples(10, 14)
    images = fresh.images.clone()
    images[fresh.labels == 1] = images[fresh.labels == 0]
    found = coverage_of(images, fresh.labels)
    assert found["by_class"][0]["class"] == "b"
    assert found["by_class"][0]["value"] < found["by_class"][0]["perfect"]["low"]
