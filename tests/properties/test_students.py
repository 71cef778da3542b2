"""Students: sizes, texts, descriptions, parameters and samples of every kind.

Each test breaks when an absurd size allocates before it is refused, or when a vector or a batch
that does not fit reaches torch's operators.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from iadd_fast import students
from iadd_fast.students.student import LARGEST
from tests.properties.strategies import (
    ODD,
    Refused,
    anything,
    normal,
    odd,
    odd_tensors,
    result_of,
    small_student,
    strided,
)

SPECS: dict[str, dict[str, Any]] = {
    "convnet": {
        "channels": 1, "classes": 2, "image_size": 4, "width": 2, "depth": 1, "norm": "none",
    },
    "convnet1d": {
        "channels": 1, "classes": 2, "length": 8, "width": 2, "depth": 1, "norm": "none",
        "kernel": 3,
    },
    "mlp": {"inputs": 4, "classes": 2, "width": 2, "depth": 2},
    "alexnet": {"channels": 1, "classes": 2, "image_size": 8},
}  # fmt: skip
OPTIONS = [(name, option) for name, spec in SPECS.items() for option in spec]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
@given(value=odd)
def test_every_option(name: str, option: str, value: Any) -> None:
    """Breaks when a width of 10^9 allocates, or a description does not build the same student."""
    if name == "alexnet" and isinstance(value, int) and 3 < value < LARGEST:
        return  # megabytes
    made = result_of(lambda: students.build({"name": name, **SPECS[name], option: value}))
    if not isinstance(made, Refused):
        assert 0 < made.num_parameters <= LARGEST
        again = students.build(made.spec)
        assert again.spec == made.spec
        assert torch.equal(again.init(3), made.init(3))


@pytest.mark.parametrize("size", (10**5, 10**6, 10**9, 10**18, 10**40))
def test_absurd_sizes_allocate_nothing(size: int) -> None:
    """Breaks when the parameters are counted by making them: 10^12 and more numbers."""
    for name in ("convnet", "convnet1d", "mlp"):
        for options in ({"width": size}, {"classes": size, "width": 10**6}, {"depth": size}):
            spec = {**SPECS[name], "image_size": 64, "length": 64, "inputs": 64, "depth": 3}
            spec = {key: value for key, value in spec.items() if key in SPECS[name]}
            made = result_of(partial(students.build, {"name": name, **spec, **options}))
            assert isinstance(made, Refused)


texts = st.one_of(
    odd,
    st.builds(
        "{}:{}={}".format,
        st.sampled_from((*SPECS, "vgg11", "resnet18", "unknown")),
        st.sampled_from(("width", "depth", "norm", "kernel", "classes", "nothing", "")),
        st.sampled_from(("0", "-1", "1", "2", "nan", "1e9", "true", "none", "layer", "9" * 5000)),
    ),
)


@given(
    text=texts,
    shape=st.sampled_from([(1, 4, 4), (1, 8), (3,), (), (0, 4, 4), "144", None, (1, 4, True)]),
    classes=st.sampled_from([2, 1, 0, -1, None, 2.0, "2"]),
)
def test_parse_student(text: Any, shape: Any, classes: Any) -> None:
    """Breaks when a text with an option of another network, or a shape of none, is taken."""
    made = result_of(lambda: students.parse_student(text, shape, classes))
    if not isinstance(made, Refused):
        logits = made.apply(made.init(0), normal(2, *shape))
        assert logits.shape == (2, classes)


@given(spec=st.one_of(odd, st.dictionaries(st.sampled_from(("name", "width", "a", 1)), odd)))
def test_build(spec: Any) -> None:
    """Breaks when a description out of a stranger's file is another error than one line."""
    assert isinstance(result_of(lambda: students.build(spec)), Refused)


@given(seed=anything(), device=anything(), dtype=anything())
def test_init(seed: Any, device: Any, dtype: Any) -> None:
    """Breaks when the caller's random state moves, or an int or complex dtype is taken."""
    student = small_student("mlp")
    state = torch.random.get_rng_state()
    for arguments in ((seed,), (0, device), (0, "cpu", dtype)):
        made = result_of(partial(student.init, *arguments))
        if not isinstance(made, Refused):
            assert made.shape == (student.num_parameters,)
            assert made.is_floating_point()
    assert torch.equal(torch.random.get_rng_state(), state)


@given(name=st.sampled_from(("convnet", "none", "layer", "mlp")), data=st.data())
def test_apply_values(name: str, data: st.DataObject) -> None:
    """Breaks when strides change the logits, or the samples of a batch depend on each other."""
    student = small_student(name)
    theta, images = student.init(1), normal(data.draw(st.integers(1, 3)), 1, 4, 4)
    odd_theta, odd_images = data.draw(strided(theta)), data.draw(strided(images))
    got = result_of(lambda: student.apply(odd_theta, odd_images), odd_theta, odd_images)
    one_by_one = torch.cat([student.apply(theta, image[None]) for image in images])
    assert (got - one_by_one).abs().max() <= 1e-5


@given(value=anything(), images=odd_tensors(), name=st.sampled_from(("convnet", "mlp")))
def test_apply_of_odd_arguments(value: Any, images: Tensor, name: str) -> None:
    """Breaks when a vector of another length is cut, or a batch of another shape is multiplied."""
    student = small_student(name)
    got = result_of(lambda: student.apply(value, normal(2, 1, 4, 4)), value)
    assert isinstance(got, Refused)
    got = result_of(lambda: student.apply(student.init(0), images), images)
    if not isinstance(got, Refused):
        assert images.shape[1:].numel() == 16
        assert images.dtype == torch.float32
        assert got.shape == (len(images), 2)


@given(value=anything())
def test_check_theta(value: Any) -> None:
    """Breaks when something passes as parameters that no engine can start from."""
    assert isinstance(result_of(lambda: small_student().check_theta(value)), Refused)


def test_from_module_takes_modules() -> None:
    """Breaks when an odd value is called for a module and fails inside of torch."""
    for value in ODD:
        if value is len:
            continue  # what a user's function raises is its own
        assert isinstance(result_of(partial(students.from_module, value)), Refused)
