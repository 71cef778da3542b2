"""Influence: the derivative against finite differences, first order against a real removal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_fast.audit import influence as module
from iadd_fast.audit.influence import Training, class_loss, influence
from iadd_fast.audit.material import Material
from iadd_fast.data import Split
from iadd_fast.students import Student, convnet, mlp
from tests.audit.explained import STUDENT, blobs, centres, distilled_set, material


def training(
    student: Student, shape: tuple[int, ...], dtype: torch.dtype, **change: Any
) -> Training:
    draw = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "student": student,
        "theta": student.init(0, dtype=dtype),
        "images": torch.randn(5, *shape, generator=draw, dtype=torch.float64).to(dtype),
        "labels": F.one_hot(torch.tensor([0, 1, 2, 1, 0]), 3).to(dtype),
        "lr": 0.3,
        "steps": 6,
        "window": 6,
    }
    return Training(**values | change)


def held(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    draw = torch.Generator().manual_seed(7)
    return torch.randn(8, *shape, generator=draw, dtype=torch.float64).to(dtype)


MLP = mlp(inputs=(1, 4, 4), classes=3, width=6, depth=2)
CONVNET = convnet(channels=1, classes=3, image_size=8, width=4, depth=2)


@pytest.mark.parametrize(
    ("student", "shape", "engine", "options"),
    [
        (MLP, (1, 4, 4), "module", {}),
        (MLP, (1, 4, 4), "reference", {"batch_size": 2}),
        (CONVNET, (1, 8, 8), "fused", {"augment": "crop_scale"}),
        (CONVNET, (1, 8, 8), "fused", {"batch_size": 3}),
    ],
)
def test_it_is_the_derivative_by_an_examples_weight(
    student: Student, shape: tuple[int, ...], engine: str, options: dict[str, Any]
) -> None:
    """Against central differences of reweighting in float64: breaks on a wrong sign, scale or
    factor of s, on labels that the engine takes to sum to 1, and on a sweep cut short."""
    one = training(student, shape, torch.float64, engine=engine, **options)
    # probabilities that are not one-hot, so that the sum over a row counts
    soft = torch.softmax(torch.randn(5, 3, generator=torch.Generator().manual_seed(3)).double(), 1)
    one = replace(one, labels=soft)
    images = held(shape, torch.float64)
    arrival = one.arrival()
    _, gradient = class_loss(student, arrival, images, 1)
    found = one.influence(arrival, gradient)
    step = 1e-6
    for sample in range(5):
        losses = []
        for side in (1.0, -1.0):
            labels = one.labels.clone()
            labels[sample] *= 1.0 + side * step
            losses.append(class_loss(student, one.arrival(labels), images, 1)[0])
        expected = (losses[0] - losses[1]) / (2 * step)
        assert float(found[sample]) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_float32_keeps_the_digits() -> None:
    """Breaks when the target is so near that theta_J - target loses the gradient."""
    images = held((1, 8, 8), torch.float64)
    results = []
    for dtype in (torch.float64, torch.float32):
        one = training(CONVNET, (1, 8, 8), dtype, steps=20, window=20)
        arrival = one.arrival()
        # a gradient as small as that of a class that is all but learned
        _, gradient = class_loss(CONVNET, arrival, images.to(dtype), 1)
        results.append(one.influence(arrival, 1e-6 * gradient).double() * 1e6)
    error = (results[0] - results[1]).norm() / results[0].norm()
    assert float(error) < 1e-4


def test_without_is_the_training_with_the_sample_left_out() -> None:
    """Breaks when another sample goes, or the draws change with it."""
    one = training(MLP, (1, 4, 4), torch.float64)
    rest = [0, 1, 3, 4]
    alone = replace(one, images=one.images[rest], labels=one.labels[rest], lr=one.lr * 4 / 5)
    torch.testing.assert_close(one.without(2), alone.arrival())


def test_a_loss_that_does_not_move_has_no_influence() -> None:
    """Breaks when a gradient of 0 is divided by."""
    one = training(MLP, (1, 4, 4), torch.float64)
    assert one.influence(one.arrival(), torch.zeros_like(one.theta)).tolist() == [0.0] * 5


@pytest.fixture(scope="module")
def mislabelled() -> Material:
    """Class centres, and a second one of class 0 that is said to be of class 2."""
    data = blobs()
    images = torch.cat([centres(), centres()[:1] + 0.1])
    return material(data, distilled_set(data, images, torch.tensor([0, 1, 2, 2])))


@pytest.fixture(scope="module")
def measured(mislabelled: Material) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STEPS", 30)
        return influence(mislabelled, networks=2)


def test_a_mislabelled_sample_hurts_the_class_of_its_image(measured: dict[str, Any]) -> None:
    """Breaks on a sign, or on rows and columns that are mixed up."""
    matrix = measured["matrix"]
    assert all(matrix[i][i] > 0 for i in range(2))
    assert matrix[3][0] < 0
    assert measured["samples"][3]["hurts"][0]["class"] == 0
    assert measured["samples"][0]["helps"][0]["class"] == 0
    assert measured["samples"][0]["helps"][0]["mean"] == matrix[0][0]
    assert measured["part"] == "validation"


def test_first_order_ranks_as_a_removal_does(measured: dict[str, Any]) -> None:
    """Breaks when what is predicted and what is removed differ in sample, class or sign."""
    check = measured["check"]
    assert check["samples"] == [0, 1, 2, 3]
    assert check["pairs"] == 12
    assert min(check["rank_correlation"]) > 0.6
    assert check["same_sign"] > 0.6


def test_a_class_without_held_out_samples_is_not_known(
    mislabelled: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when a mean over no samples reaches the result as NaN."""
    monkeypatch.setattr(module, "STEPS", 10)
    test = mislabelled.test
    few = test.subset((test.labels != 1).nonzero()[:, 0])
    nothing = Split(test.images[:0], test.labels[:0])
    found = influence(replace(mislabelled, validation=nothing, test=few), networks=1)
    assert found["part"] == "test"
    assert [row[1] for row in found["matrix"]] == [None] * 4
    assert found["class_loss"][1] is None
    assert found["spread"] is None
    assert found["agreement"] is None
    assert found["own_class_first"]["of"] == 3


def test_divergence_is_said(mislabelled: Material) -> None:
    """Breaks when parameters that are not finite are measured on."""
    data = mislabelled.data
    wild = distilled_set(data, 1e30 * centres(), torch.arange(3), lr=1e30)
    found = influence(replace(mislabelled, distilled=wild), networks=2)
    assert found["measured"] is False
    assert "diverged" in found["reason"]


def test_the_cost_is_kept_in_proportion(
    mislabelled: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when caps are passed over, or what was capped is not told."""
    monkeypatch.setattr(module, "PASSES", 3 * 4 * 7)
    monkeypatch.setattr(module, "LEAST_STEPS", 2)
    monkeypatch.setattr(module, "KEPT", 5 * STUDENT.num_parameters * 4)
    monkeypatch.setattr(module, "HELD_OUT", 6)
    monkeypatch.setattr(module, "CHECKED", 2)
    monkeypatch.setattr(module, "BATCH", 3)
    found = influence(mislabelled, networks=1)
    assert found["steps"] == 3 * 4 * 7 // (3 * 3)
    assert found["window"] == 5
    assert found["held_out_by_class"] == [2, 2, 2]
    assert len(found["check"]["samples"]) == 2
    assert found["batch_size"] == 3
