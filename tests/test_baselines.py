from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from iadd_fast.baselines import (
    BASELINES,
    herding_indices,
    k_center_indices,
    random_indices,
    select,
)


def clusters(count: int = 12, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count * classes, 1, 2, 2, generator=generator)
    labels = torch.arange(classes).repeat(count)
    return features, labels


def brute_force_herding(vectors: Tensor, count: int) -> list[int]:
    mean = vectors.mean(0)
    chosen: list[int] = []
    for _ in range(count):
        best, smallest = -1, float("inf")
        for candidate in range(len(vectors)):
            if candidate in chosen:
                continue
            distance = float((mean - vectors[[*chosen, candidate]].mean(0)).norm())
            if distance < smallest:
                best, smallest = candidate, distance
        chosen.append(best)
    return chosen


def covering_radius(vectors: Tensor, centres: list[int]) -> float:
    return float(torch.cdist(vectors, vectors[centres]).min(1).values.max())


def test_herding_equals_a_brute_force_greedy_search() -> None:
    """Breaks if the running sum, the class mean or the order of choice is wrong."""
    features, labels = clusters()
    got = herding_indices(features, labels, 5).view(3, 5)
    for label in range(3):
        members = (labels == label).nonzero().flatten()
        wanted = members[brute_force_herding(features[members].flatten(1).double(), 5)]
        assert got[label].tolist() == wanted.tolist()


def test_herding_never_takes_an_image_twice() -> None:
    """Breaks if a chosen image stays in the running: here the first choice is the exact mean."""
    features = torch.tensor([[0.0], [-1.0], [1.0], [5.0], [-5.0]])
    got = herding_indices(features, torch.zeros(5, dtype=torch.int64), 5)
    assert got[0] == 0
    assert sorted(got.tolist()) == [0, 1, 2, 3, 4]


def test_k_center_starts_at_the_image_nearest_to_the_mean_and_goes_to_the_farthest() -> None:
    """Breaks if the start is drawn at random or the next centre is not the farthest image."""
    features = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])  # mean 3.2
    got = k_center_indices(features, torch.zeros(5, dtype=torch.int64), 3)
    assert got.tolist() == [3, 4, 0]


@pytest.mark.parametrize("seed", range(5))
def test_k_center_covers_within_twice_the_optimum(seed: int) -> None:
    """Breaks if distances to earlier centres are forgotten (the bound of farthest-first fails)."""
    features, _ = clusters(count=11, classes=1, seed=seed)
    vectors = features.flatten(1).double()
    labels = torch.zeros(11, dtype=torch.int64)
    got = k_center_indices(features, labels, 3).tolist()
    optimum = min(covering_radius(vectors, list(centres)) for centres in combinations(range(11), 3))
    assert covering_radius(vectors, got) <= 2.0 * optimum


def test_k_center_takes_no_image_twice_where_all_are_copies() -> None:
    """Breaks if a chosen image at distance zero can be chosen again; the seed decides the order."""
    features = torch.ones(8, 3)
    labels = torch.zeros(8, dtype=torch.int64)
    got = {tuple(k_center_indices(features, labels, 4, seed).tolist()) for seed in range(5)}
    assert all(len(set(choice)) == 4 for choice in got)
    assert len(got) > 1


def test_random_is_seeded_class_major_and_without_repeats() -> None:
    """Breaks if the draw ignores the seed, mixes classes or repeats an image."""
    _, labels = clusters(count=40)
    first = random_indices(labels, 7, seed=1)
    assert torch.equal(first, random_indices(labels, 7, seed=1))
    assert not torch.equal(first, random_indices(labels, 7, seed=2))
    assert labels[first].tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert len(set(first.tolist())) == 21


def test_random_reaches_every_image() -> None:
    """Breaks if the draw is confined to a part of the class, such as its first images."""
    labels = torch.zeros(6, dtype=torch.int64)
    seen = {int(random_indices(labels, 1, seed)[0]) for seed in range(100)}
    assert seen == set(range(6))


@pytest.mark.parametrize("name", BASELINES)
def test_select_is_the_function_of_that_name(name: str) -> None:
    """Breaks if two names are swapped in the table."""
    features, labels = clusters()
    wanted = {
        "random": random_indices(labels, 3, 4),
        "herding": herding_indices(features, labels, 3),
        "k_center": k_center_indices(features, labels, 3, 4),
    }[name]
    assert torch.equal(select(name, features, labels, 3, 4), wanted)


def test_errors_name_the_argument_and_what_it_got() -> None:
    """Breaks if a class with too few images gives a short set instead of an error."""
    features, labels = clusters(count=4)
    with pytest.raises(ValueError, match="per_class: got 5; class 0 has only 4 images"):
        random_indices(labels, 5)
    with pytest.raises(ValueError, match="class 1 has only 0 images"):
        random_indices(torch.tensor([0, 2, 0, 2]), 1)
    with pytest.raises(ValueError, match="per_class: got 0"):
        herding_indices(features, labels, 0)
    with pytest.raises(ValueError, match="features: got a torch.float32 tensor of shape"):
        k_center_indices(features[:5], labels, 1)
    with pytest.raises(ValueError, match=r"labels: got a torch\.float32"):
        random_indices(torch.rand(12, 3), 1)
    with pytest.raises(ValueError, match="baseline: got 'best'; takes one of random, herding"):
        select("best", features, labels, 1)
