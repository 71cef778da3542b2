"""``train``, ``train_many`` and ``accuracy``: SGD written out in float64, and everything refused.

Each test breaks when an argument reaches torch unchecked (an error without its name, a crash in an
operator that indexes with labels), when an input is changed, or when odd memory changes a value.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from iadd_fast.baselines import BASELINES, select
from iadd_fast.seeds import generator
from iadd_fast.training import accuracy, train, train_many
from tests.properties.strategies import (
    Refused,
    anything,
    normal,
    odd_tensors,
    result_of,
    small_student,
    strided,
)

OPTIONS = (
    "lr", "epochs", "batch_size", "momentum", "weight_decay", "decay", "augment", "seed",
    "engine", "precision",
)  # fmt: skip
students = st.sampled_from(("convnet", "mlp"))


def arguments(student: str, count: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A set of ``count`` images that any engine takes."""
    network = small_student(student)
    return {
        "student": network,
        "theta": network.init(0, dtype=dtype),
        "images": normal(count, 1, 4, 4, seed=1, dtype=dtype),
        "labels": torch.arange(count) % 2,
        "lr": 0.05,
        "epochs": 1,
    }


@given(data=st.data())
def test_values(data: st.DataObject) -> None:
    """Breaks when memory, one image, one class, no epoch or a short last batch changes a step."""
    draw = data.draw
    count = draw(st.integers(1, 4))
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    problem = arguments(draw(st.sampled_from(("convnet", "layer", "mlp"))), count, dtype)
    if draw(st.booleans()):
        problem["labels"] = torch.zeros(count, dtype=torch.int64)
    for name in ("theta", "images", "labels"):
        problem[name] = draw(strided(problem[name]))
    options: dict[str, Any] = {
        "batch_size": draw(st.integers(1, 5)),
        "momentum": draw(st.sampled_from((0.0, 0.5))),
        "weight_decay": draw(st.sampled_from((0.0, 0.01))),
        "seed": draw(st.integers(-5, 5)),
    }
    problem["epochs"] = draw(st.integers(0, 2))
    got = result_of(lambda: train(**problem, **options), *problem.values())
    assert not isinstance(got, Refused), got
    theta = problem["theta"].detach().double().clone().requires_grad_(True)
    velocity = torch.zeros_like(theta)
    order = generator(options["seed"], "order")
    for _ in range(problem["epochs"]):
        for batch in torch.randperm(count, generator=order).split(options["batch_size"]):
            inputs = problem["images"].detach()[batch].double()
            logits = problem["student"].apply(theta, inputs)
            loss = F.cross_entropy(logits, problem["labels"][batch])
            (gradient,) = torch.autograd.grad(loss, theta)
            gradient = gradient + options["weight_decay"] * theta.detach()
            velocity = options["momentum"] * velocity + gradient
            theta = (theta.detach() - problem["lr"] * velocity).requires_grad_(True)
    limit = 1e-9 if dtype == torch.float64 else 1e-3
    assert got.dtype == dtype
    assert not got.requires_grad
    assert (got.double() - theta.detach()).abs().max() <= limit


@pytest.mark.parametrize("name", ("student", "theta", "images", "labels", *OPTIONS))
@given(value=anything(), student=students)
def test_one_odd_argument(name: str, value: Any, student: str) -> None:
    """Breaks when one argument of ``train`` is used before it is checked."""
    if name == "epochs" and isinstance(value, int) and value > 1000:
        return  # takes as long as it says
    got = result_of(lambda: train(**{**arguments(student), name: value}), value)
    if not isinstance(got, Refused):
        assert got.isfinite().all() or isinstance(value, Tensor)
        assert got.shape == (small_student(student).num_parameters,)


@given(
    thetas=odd_tensors(), images=odd_tensors(), labels=odd_tensors(), seeds=anything(),
    at_once=anything(), student=students,
)  # fmt: skip
def test_odd_sets(
    thetas: Tensor, images: Tensor, labels: Tensor, seeds: Any, at_once: Any, student: str
) -> None:
    """Breaks when several networks' sets, parameters or seeds are used before they are checked."""
    fine = arguments(student)
    network, both = fine["student"], fine["theta"].repeat(2, 1)
    own = fine["images"], fine["labels"]

    def call(thetas: Any, sets: Any, seeds: Any, at_once: Any) -> Any:
        return result_of(
            lambda: train_many(
                network, thetas, sets, seeds=seeds, lr=0.1, epochs=1, at_once=at_once
            ),
            thetas,
            images,
            labels,
        )

    assert isinstance(call(thetas, [own], [0, 1], None), Refused)
    assert isinstance(call(both, [(images, labels)], [0, 1], None), Refused)
    assert isinstance(call(both, [own, (own[0], labels)], [0, 1], None), Refused)
    assert isinstance(call(both, [own], seeds, None), Refused) or len(seeds) == 2
    call(both, [own], [0, 1], at_once)


@given(data=st.data())
def test_accuracy_values(data: st.DataObject) -> None:
    """Breaks when a batch is counted twice or not at all, or odd memory changes a prediction."""
    draw = data.draw
    count = draw(st.integers(1, 7))
    problem = arguments(draw(st.sampled_from(("convnet", "layer", "mlp"))), count)
    theta, images, labels = (draw(strided(problem[name])) for name in ("theta", "images", "labels"))
    tensors = [theta, images, labels]
    batch_size = draw(st.integers(1, 9))
    got = result_of(
        lambda: accuracy(problem["student"], theta, images, labels, batch_size), *tensors
    )
    assert not isinstance(got, Refused), got
    logits = problem["student"].apply(*(tensor.detach() for tensor in tensors[:2]))
    assert got == 100 * int((logits.argmax(1) == tensors[2]).sum()) / count


@pytest.mark.parametrize("name", ("student", "theta", "images", "labels", "batch_size"))
@given(value=anything(), student=students)
def test_accuracy_of_one_odd_argument(name: str, value: Any, student: str) -> None:
    """Breaks when labels of another dtype or length compare as false: an accuracy of 0."""
    problem = arguments(student)
    fine = {key: problem[key] for key in ("student", "theta", "images", "labels")}
    got = result_of(lambda: accuracy(**{**fine, name: value}), value)
    if not isinstance(got, Refused):
        assert 0 <= got <= 100
        assert name == "batch_size" or value.shape == problem[name].shape


@given(name=st.sampled_from(BASELINES), data=st.data())
def test_baselines_choose_from_their_class(name: str, data: st.DataObject) -> None:
    """Breaks when an index is of another class or comes twice, or inputs of odd memory differ."""
    labels = data.draw(st.lists(st.integers(0, 2), min_size=6, max_size=12).map(torch.tensor))
    labels = torch.cat([torch.arange(3).repeat(2), labels])
    features = normal(len(labels), 2, seed=data.draw(st.integers(0, 3)))
    odd_labels, odd_features = data.draw(strided(labels)), data.draw(strided(features))
    per_class = data.draw(st.integers(1, 2))
    got = result_of(
        lambda: select(name, odd_features, odd_labels, per_class, 1), odd_features, odd_labels
    )
    assert torch.equal(got, select(name, features, labels, per_class, 1))
    assert torch.equal(labels[got], torch.arange(3).repeat_interleave(per_class))
    assert len(set(got.tolist())) == 3 * per_class


@given(
    name=anything(), features=anything(),
    labels=anything(), per_class=anything(), seed=anything(),
)  # fmt: skip
def test_baselines_of_odd_arguments(
    name: Any, features: Any, labels: Any, per_class: Any, seed: Any
) -> None:
    """Breaks when labels below 0, NaN features or a fraction of an image is taken."""
    fine: dict[str, Any] = {
        "name": "random", "features": normal(6, 2), "labels": torch.arange(6) % 2, "per_class": 1,
        "seed": 0,
    }  # fmt: skip
    if not (isinstance(name, str) and name in BASELINES):
        assert isinstance(result_of(lambda: select(**{**fine, "name": name})), Refused)
    odd_ones = {
        "features": features, "labels": labels, "per_class": per_class, "seed": seed,
    }  # fmt: skip
    for key, value in odd_ones.items():
        for baseline in BASELINES:
            got = result_of(lambda: select(**{**fine, "name": baseline, key: value}), value)  # noqa: B023
            assert isinstance(got, Refused) or got.dtype == torch.int64
