"""Importance policies: every option of every one, and odd gradients in the life of a policy.

Each test breaks when an option out of range is taken (NaN, a text, a share of 2), or a weight comes
out that is not one finite number per parameter.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iadd_fast.importance import POLICIES, Paper, Segment, Setting, parse_importance
from tests.properties.strategies import Refused, normal, odd, result_of, small_student, strided

OPTIONS = [
    (name, option)
    for name, policy in POLICIES.items()
    for option in inspect.signature(policy).parameters
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
@given(value=odd)
def test_every_option(name: str, option: str, value: Any) -> None:
    """Breaks when one option of one policy is not checked where it is given."""
    made = result_of(lambda: POLICIES[name](**{option: value}))
    if not isinstance(made, Refused):
        described = made.describe()
        again = POLICIES[name](**{key: kept for key, kept in described.items() if key != "name"})
        assert again.describe() == described
        _live(made)


texts = st.one_of(
    odd,
    st.builds(
        "{}:{}={}".format,
        st.sampled_from((*POLICIES, "unknown")),
        st.sampled_from((*{option for _, option in OPTIONS}, "", "nothing")),
        st.sampled_from(("0", "-1", "0.5", "1", "2", "nan", "inf", "1e308", "true", "fisher", "")),
    ),
)


@given(text=texts)
def test_parse(text: Any) -> None:
    """Breaks when true counts as 1 or nan as a number in a text, or a foreign value crashes."""
    made = result_of(lambda: parse_importance(text))
    if not isinstance(made, Refused):
        _live(made)


@given(name=st.sampled_from(tuple(POLICIES)), scale=st.sampled_from((0.0, 1e-15, 1.0, 1e15)),
       data=st.data())  # fmt: skip
def test_life(name: str, scale: float, data: st.DataObject) -> None:
    """Breaks when a gradient of any size or memory makes a weight infinite or NaN."""
    student = small_student("mlp")
    gradient = scale * normal(student.num_parameters, seed=5)
    _live(POLICIES[name](), data.draw(strided(gradient)).detach())


def _live(policy: Any, gradient: torch.Tensor | None = None) -> None:
    """Two outer steps and a resumption, which gives the same weight."""
    student = small_student("mlp")
    theta = student.init(0)
    setting = Setting(
        student, normal(4, 1, 4, 4), torch.arange(4) % 2, theta.device, theta.dtype, seed=0
    )
    segment = Segment(0, 0, theta, theta + 0.1 * normal(len(theta)))
    policy.prepare(setting)
    if gradient is None:
        gradient = normal(len(theta), seed=5)
    errors = gradient.square()
    for _ in range(2):
        weight = policy.weight(segment)
        if callable(weight):
            weight = weight(theta + 0.05, segment.start, segment.target)
        if weight is None:
            return
        assert weight.shape == theta.shape
        # An absurd step of raw weights diverges; the run's own check of the loss finds that.
        assert weight.isfinite().all() or isinstance(policy, Paper)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "paper" says when its weights have collapsed
            policy.update(2 * weight * errors)
    state = {key: value.clone() for key, value in policy.state().items()}
    current = policy.current()
    policy.prepare(setting)
    policy.load_state(state)
    if state and current is not None:
        assert torch.equal(policy.current(), current)
