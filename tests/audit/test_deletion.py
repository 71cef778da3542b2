"""Deletion curves: orders and areas by hand, and planted importance that must be told apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from iadd_fast.audit import deletion as module
from iadd_fast.audit.deletion import SHARES, deletion, layer_numbers, ranked, within_layers
from iadd_fast.audit.material import Material
from iadd_fast.evaluation import DISTILLED, FULL
from iadd_fast.students import mlp
from iadd_fast.training import accuracy
from tests.audit.explained import STUDENT, blobs, centres, distilled_set, material


@pytest.fixture(scope="module")
def trained() -> Material:
    data = blobs(240)
    return material(data, distilled_set(data, centres(), torch.arange(3)))


def moved(trained: Material) -> Tensor:
    """How far the networks moved each parameter, on average: an importance that means something."""
    full = trained.trained[FULL]
    assert full.initial is not None
    return (full.thetas - full.initial).abs().mean(0).sqrt()


def test_within_layers_keeps_the_layers_of_every_prefix() -> None:
    """Breaks when the control takes other layers than the learned order, or does not shuffle."""
    layers = layer_numbers(STUDENT)
    value = torch.rand(STUDENT.num_parameters, generator=torch.Generator().manual_seed(0))
    order = ranked(value.double(), 0, "ties", 0)
    assert torch.equal(order, value.argsort(descending=True))
    mixed = within_layers(order, layers, 0, 0)
    assert torch.equal(layers[mixed], layers[order])
    assert torch.equal(mixed.sort().values, torch.arange(len(order)))
    assert float((mixed == order).double().mean()) < 0.2
    assert not torch.equal(mixed, within_layers(order, layers, 0, 1))
    assert torch.equal(mixed, within_layers(order, layers, 0, 0))


def test_layers_are_those_of_the_student() -> None:
    """Breaks when a bias is numbered apart from its layer."""
    numbers = layer_numbers(STUDENT)
    for number, parts in enumerate(STUDENT.layers().values()):
        assert all(bool((numbers[part] == number).all()) for part in parts)


def test_ties_are_broken_by_chance() -> None:
    """Breaks when equal weights are taken by place, so that the first layer comes first."""
    value = torch.tensor([1.0] * 50 + [2.0] * 50)
    one, other = (ranked(value, 0, "ties", network) for network in range(2))
    assert set(one[:50].tolist()) == set(range(50, 100))
    assert one[:50].tolist() != sorted(one[:50].tolist())
    assert not torch.equal(one, other)


def test_a_curve_is_the_accuracy_with_the_first_set_back(trained: Material) -> None:
    """Breaks when the rest is set back, or to another network's start."""
    full = trained.trained[FULL]
    assert full.initial is not None
    theta, start = full.thetas[1], full.initial[1]
    order = (theta - start).abs().argsort(descending=True)
    found = module._curve_of(STUDENT, theta, start, trained.test)(order)
    for share, value in zip(SHARES, found, strict=True):
        mixed = theta.clone()
        first = order[: round(share * len(order))]
        mixed[first] = start[first]
        expected = accuracy(STUDENT, mixed, trained.test.images, trained.test.labels)
        assert value == pytest.approx(expected)
    assert len(set(found.tolist())) > 3


def test_areas_are_means_over_the_share() -> None:
    """Breaks when the uneven shares count alike, or a difference has the other sign."""
    falling = np.array([100.0 * (1 - share) for share in SHARES])
    high = np.full(len(SHARES), 100.0)
    assert module._area(falling) == pytest.approx(50.0)
    top, bottom = (np.stack([np.stack([curve])] * 2) for curve in (falling, high))
    control = np.stack([np.stack([falling + 10, falling + 20])] * 2)
    areas = module._areas(top, bottom, control, control)
    assert areas["top"]["value"] == pytest.approx(15.0)
    assert areas["bottom"]["value"] == pytest.approx(35.0)
    assert areas["both"]["value"] == pytest.approx(25.0)


def test_importance_that_means_something_separates(trained: Material) -> None:
    """Breaks when top and bottom, learned and control, or the groups are mixed up."""
    found = deletion(trained, moved(trained))
    full = found["groups"][FULL]
    assert full["verdict"] == "separates"
    assert full["areas"]["learned_against_within_layers"]["top"]["low"] > 0
    tenth = SHARES.index(0.2)
    assert full["top"]["learned"]["mean"][tenth] < full["top"]["random"]["mean"][tenth] - 5
    assert full["bottom"]["learned"]["mean"][tenth] > full["bottom"]["random"]["mean"][tenth]
    assert full["networks"] == 4
    assert found["groups"][DISTILLED]["networks"] == 4
    assert found["of_test_images"] == 60


def test_importance_turned_round_is_called_so(trained: Material) -> None:
    """Breaks when a significant difference of the wrong sign counts as meaning."""
    found = deletion(trained, 1.0 / (1e-3 + moved(trained)))
    assert found["groups"][FULL]["verdict"] == "reversed"


def test_random_importance_does_not_separate(trained: Material) -> None:
    """Breaks when the verdict finds meaning in chance."""
    weight = torch.rand(STUDENT.num_parameters, generator=torch.Generator().manual_seed(2))
    found = deletion(trained, weight)
    assert {group["verdict"] for group in found["groups"].values()} == {"nothing"}


def test_one_weight_a_layer_says_no_more_than_layers(trained: Material) -> None:
    """Breaks when the control differs from a learned order that knows layers only."""
    weight = torch.empty(STUDENT.num_parameters)
    for number, parts in enumerate(STUDENT.layers().values()):
        for part in parts:
            weight[part] = 1.0 + number
    found = deletion(trained, weight)
    assert found["ties"] == STUDENT.num_parameters - len(STUDENT.layers())
    for group in found["groups"].values():
        assert group["verdict"] in ("layers", "layers_reversed", "nothing")


def test_equal_seeds_give_equal_curves(trained: Material) -> None:
    """Breaks when something is drawn outside the seed."""
    weight = moved(trained)
    one, other = (deletion(trained, weight, networks=2, draws=2) for _ in range(2))
    assert one == other
    assert one != deletion(replace(trained, seed=1), weight, networks=2, draws=2)


@pytest.mark.parametrize(
    ("random", "layers", "expected"),
    [
        ((1, 2), (1, 2), "separates"),
        ((-2, -1), (1, 2), "separates"),
        ((1, 2), (-1, 1), "layers"),
        ((-2, -1), (-1, 1), "layers_reversed"),
        ((1, 2), (-2, -1), "reversed"),
        ((-1, 1), (-1, 1), "nothing"),
        ((-1, 1), (None, None), "unresolved"),
    ],
)
def test_the_verdict_is_read_off_the_intervals(random: Any, layers: Any, expected: str) -> None:
    """Breaks when one of the cases is called by another's name."""
    areas = [dict(zip(("low", "high"), ends, strict=True)) for ends in (random, layers)]
    assert module.verdict(*areas) == expected


def test_one_network_with_equal_draws_is_not_resolved() -> None:
    """Breaks when no spread counts as certainty."""
    assert module._estimated(np.full((1, 5), 3.0)).to_dict()["low"] is None


def test_there_is_nothing_to_test_without_weights(trained: Material) -> None:
    """Breaks when equal weights are ordered and measured."""
    assert deletion(trained, None)["measured"] is False
    assert "equal" in deletion(trained, torch.ones(STUDENT.num_parameters))["reason"]
    other = mlp(inputs=(1, 4, 4), classes=3, width=5, depth=2)
    weight = torch.rand(other.num_parameters)
    assert "another architecture" in deletion(trained, weight)["reason"]
    full = replace(trained.trained[FULL], initial=None)
    lost = replace(trained, trained={**trained.trained, FULL: full})
    assert "started from" in deletion(lost, torch.rand(STUDENT.num_parameters))["reason"]
