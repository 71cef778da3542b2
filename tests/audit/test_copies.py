from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from iadd_fast import seeds
from iadd_fast.audit.copies import (
    Space,
    distances_to,
    histograms,
    peak_signal_to_noise,
    share_nearer_to_train,
    yardstick,
)
from iadd_fast.audit.neighbours import find, identities, nearest, squared_distances, standardised


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed, "test"))


def space_of(train: Tensor, held: Tensor, classes: int = 3) -> Space:
    return Space(
        "pixels",
        train,
        held,
        torch.arange(len(train)) % classes,
        torch.arange(len(held)) % classes,
        torch.arange(len(train)),
    )


def test_nearest_is_that_of_all_distances() -> None:
    """Breaks when a chunk's offset is lost or the candidates are not sorted again."""
    queries, records = draw(37, 5), draw(211, 5, seed=1)
    distances, indices = nearest(queries, records, 3)
    wanted = torch.cdist(queries.double(), records.double()).topk(3, largest=False)
    assert torch.equal(indices, wanted.indices)
    assert torch.allclose(distances, wanted.values, rtol=1e-12)


def test_chunks_give_what_one_pass_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when rows of a later chunk are put in the place of an earlier one."""
    queries, records = draw(23, 4), draw(50, 4, seed=1)
    whole = nearest(queries, records, 2)
    monkeypatch.setattr("iadd_fast.audit.neighbours._VALUES_AT_ONCE", 200)
    assert len(list(squared_distances(queries, records))) == 6
    parts = nearest(queries, records, 2)
    assert torch.equal(whole[1], parts[1])
    assert torch.allclose(whole[0], parts[0], rtol=1e-12)


def test_a_copy_far_from_the_origin_is_at_distance_zero() -> None:
    """Breaks when |q|^2 + |r|^2 - 2 q.r is taken for the distance: it cancels to about 1."""
    records = draw(100, 8) + 1000.0
    distances, indices = nearest(records[40:41], records, 1)
    assert float(distances) == 0.0
    assert int(indices) == 40


def test_standardised_rows_are_apart_by_their_correlation() -> None:
    """Breaks when a row is not centred or not scaled: contrast and brightness would count."""
    one, other = draw(1, 30), draw(1, 30, seed=1)
    r = float(np.corrcoef(one[0].numpy(), other[0].numpy())[0, 1])
    distance = (standardised(one) - standardised(3 * other - 5)).norm()
    assert float(distance) == pytest.approx((2 * (1 - r)) ** 0.5, abs=1e-5)


def test_records_are_found_by_value() -> None:
    """Breaks when equal images get two numbers, or a stranger is taken for its neighbour."""
    records = draw(20, 1, 3, 3)
    records[7] = records[2]
    (numbers,) = identities(records)
    assert numbers[7] == numbers[2]
    assert len(numbers.unique()) == 19
    rounded = records[[4, 9]] * (1 + 1e-6)
    assert find(torch.cat([records[[0]], rounded]), records, "x").tolist() == [0, 4, 9]
    with pytest.raises(ValueError, match="x: 1 of 2 images are not among the 20 records"):
        find(torch.stack([records[3], records[3] + 1.0]), records, "x")


def test_a_copy_is_nearest_to_its_record_and_its_ratio_is_zero() -> None:
    """Breaks when the ratio is of training to held-out, or the record's place is that of a draw."""
    train, held = draw(60, 6), draw(30, 6, seed=1)
    space = space_of(train, held)
    shuffled = Space(
        "features", train, held, space.train_labels, space.held_labels, torch.arange(60) + 500
    )
    found = distances_to(torch.cat([train[17:18], draw(1, 6, seed=2)]), shuffled)
    assert found.closest[0] == found.ratio[0] == 0.0
    assert found.record[0] == 517
    every = torch.cdist(draw(1, 6, seed=2), train)[0].sort().values
    assert found.ratio[1] == pytest.approx(float(every[0] / every[1]), rel=1e-5)
    assert found.held[1] == pytest.approx(float(torch.cdist(draw(1, 6, seed=2), held).min()))


def test_the_yardstick_leaves_a_held_out_record_out_of_its_own_search() -> None:
    """Breaks when a record finds itself among the held-out ones, at distance 0."""
    space = space_of(draw(40, 4), draw(25, 4, seed=1))
    found = yardstick(space, seed=0)
    wanted = torch.cdist(space.held, space.held).fill_diagonal_(torch.inf).min(1).values
    assert torch.allclose(torch.from_numpy(found.held).float(), wanted)
    assert torch.allclose(
        torch.from_numpy(found.closest).float(), torch.cdist(space.held, space.train).min(1).values
    )


def test_copies_are_nearer_to_training_and_strangers_to_neither() -> None:
    """Breaks when sides are exchanged, or a larger training part counts as nearer by its size."""
    train, held = draw(900, 6), draw(150, 6, seed=1)
    space = space_of(train, held)
    near = train[:60] + 0.05 * draw(60, 6, seed=2)
    copied = share_nearer_to_train(near, space, seed=0)
    # each record is among the 150 compared ones in a sixth of the draws: 1/6 + 5/12 expected
    assert 0.51 < copied["value"] < 0.65
    equal = share_nearer_to_train(near, space_of(train[:150], held), seed=0)
    assert equal["value"] > 0.95
    assert equal["interval"][0] > 0.85
    assert equal["draws"] == 1
    assert copied["draws"] == 10
    strangers = share_nearer_to_train(draw(60, 6, seed=3), space, seed=0)
    assert strangers["compared"] == 150
    assert strangers["interval"][0] < 0.5 < strangers["interval"][1]


def test_samples_with_one_nearest_record_count_once() -> None:
    """Breaks when dependence is ignored: 40 samples around one record look like 40 findings."""
    train, held = draw(30, 5), draw(30, 5, seed=1)
    around = train[:1] + 0.01 * draw(40, 5, seed=2)
    found = share_nearer_to_train(around, space_of(train, held), seed=0)
    assert found["value"] == 1.0
    assert found["effective_samples"] == pytest.approx(1.0)
    assert found["interval"][0] < 0.05
    assert found["expected"] == [0.0, 1.0]


def test_under_the_null_the_share_interval_covers_a_half() -> None:
    """Breaks when the interval is too narrow: at least 95 % of 100 null sets should hold 0.5."""
    inside = 0
    for number in range(100):
        samples = draw(20, 4, seed=3 * number)
        space = space_of(draw(90, 4, seed=3 * number + 1), draw(90, 4, seed=3 * number + 2))
        low, high = share_nearer_to_train(samples, space, seed=number)["interval"]
        inside += low <= 0.5 <= high
    assert inside >= 90


def test_signal_to_noise_and_histograms() -> None:
    """Breaks when the peak is not squared, identical images divide by 0, or bins differ."""
    one = torch.zeros(2, 1, 2, 2)
    other = torch.stack([torch.full((1, 2, 2), 0.1), torch.zeros(1, 2, 2)])
    first, second = peak_signal_to_noise(one, other, 2.0)
    assert first == pytest.approx(10 * np.log10(4 / 0.01), abs=1e-4)
    assert second is None
    found = histograms({"a": np.array([1.0, 2.0]), "b": np.array([4.0])})
    assert found["edges"][0] == 0.0
    assert found["edges"][-1] == 4.0
    assert sum(found["counts"]["a"]) == 2
    assert found["counts"]["b"][-1] == 1
