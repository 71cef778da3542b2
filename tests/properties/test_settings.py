"""Settings, seeds, texts and names: every value of every type gives the same object or one error.

Each test breaks when a check is left out: a value passes that the job cannot use (NaN, infinity, a
text for a number, True for 1), or an error comes from below and does not name the setting.
"""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import iadd_fast
from iadd_fast import seeds
from iadd_fast.comparison import CompareSettings
from iadd_fast.devices import resolve_device
from iadd_fast.ops import backends, use_backend
from iadd_fast.planning import DataShape, EvaluationSettings
from iadd_fast.preset import find_preset
from iadd_fast.settings import (
    METHODS,
    DistillSettings,
    ExpertSettings,
    GradientSettings,
    settings_of,
)
from iadd_fast.specs import parse_spec
from tests.properties.strategies import Refused, anything, odd, result_of

GROUPS: tuple[type[Any], ...] = (
    ExpertSettings,
    DistillSettings,
    GradientSettings,
    CompareSettings,
    EvaluationSettings,
)
FIELDS = [(group, field.name) for group in GROUPS for field in dataclasses.fields(group)]


@pytest.mark.parametrize(
    ("group", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part)
)
@given(value=anything())
def test_every_setting(group: type[Any], name: str, value: Any) -> None:
    """Breaks when one field of one group lets a value through that is no such number or text."""
    made = result_of(lambda: group.of(**{name: value}))
    if isinstance(made, Refused):
        assert made.split(":")[0].split()[0] in {f.name for f in dataclasses.fields(group)}
        return
    kept = getattr(made, name)
    default = next(field.default for field in dataclasses.fields(group) if field.name == name)
    _check_kind(kept, default, str(group.__dataclass_fields__[name].type))
    json.dumps(made.to_dict(), allow_nan=False)
    assert group.of(**made.to_dict()) == made


def _check_kind(kept: Any, default: Any, kind: str) -> None:
    """``kept`` is what the annotation says, by exact type: no True and no numpy number."""
    if kept is None:
        assert default is None
    elif "tuple" in kind:
        assert isinstance(kept, tuple)
        assert all(isinstance(entry, str) for entry in kept)
    else:
        assert type(kept).__name__ == kind.removesuffix(" | None")
        assert not isinstance(kept, float) or math.isfinite(kept)


@given(method=odd, name=odd, value=odd)
def test_settings_of(method: Any, name: Any, value: Any) -> None:
    """Breaks when an unknown method or name is an unhashable's TypeError or passes silently."""
    name = str(name)
    made = result_of(lambda: settings_of(method, {name: value}))
    if not isinstance(made, Refused):
        assert type(made) is METHODS[method]
        assert name in made.to_dict()


def test_a_number_of_too_many_digits_to_print() -> None:
    """Breaks when the message prints the number: Python refuses that with an error of its own."""
    for group in (ExpertSettings, DistillSettings, GradientSettings):
        assert isinstance(result_of(partial(group.of, seed=10**5000)), Refused)


@given(whole=st.integers(1, 10**6), share=st.floats(0, 1, exclude_max=True))
def test_numpy_numbers_are_numbers(whole: int, share: float) -> None:
    """Breaks when a sweep over np.arange or np.linspace is refused, or is kept as numpy's type."""
    ours = DistillSettings(steps=whole, momentum=share, lr_images=0.5 + share)
    theirs = DistillSettings(
        steps=np.int64(whole),  # type: ignore[arg-type]
        momentum=np.float64(share),
        lr_images=np.float64(0.5 + share),
    )
    assert ours == theirs
    assert json.dumps(ours.to_dict()) == json.dumps(theirs.to_dict())


@given(seed=anything(), path=st.lists(st.one_of(st.text(), st.integers()), max_size=4))
def test_seeds(seed: Any, path: list[Any]) -> None:
    """Breaks when "3", 3.7 or NaN counts as a seed, or a derived seed does not suit torch."""
    found = result_of(lambda: seeds.derive(seed, *path))
    if isinstance(found, Refused):
        assert not isinstance(seed, int) or isinstance(seed, bool) or abs(seed) >= 2**63
        assert found.startswith("seed: ")
        return
    assert 0 <= found < 2**63
    assert seeds.generator(seed, *path).initial_seed() == found


part = st.one_of(st.text(max_size=4), st.integers(), st.sampled_from(["/str:b", "a/int:1", "\\"]))


@given(one=st.lists(part, max_size=3), other=st.lists(part, max_size=3))
def test_streams_of_other_paths_are_others(one: list[Any], other: list[Any]) -> None:
    """Breaks when the elements are joined so that ("a", "b") and ("a/str:b",) read the same."""
    assert (seeds.derive(0, *one) == seeds.derive(0, *other)) == (one == other)


@given(text=st.text(), cut=st.integers(0, 5))
def test_no_path_is_the_text_of_another(text: str, cut: int) -> None:
    """The collision by construction, which random pairs would not find."""
    assert seeds.derive(0, text[:cut], text[cut:]) != seeds.derive(
        0, f"{text[:cut]}/str:{text[cut:]}"
    )


@given(text=odd)
def test_spec_grammar(text: Any) -> None:
    """Breaks when a text that is no ``name:key=value`` is read as one, or a non-text crashes."""
    found = result_of(lambda: parse_spec(text, "student"))
    if not isinstance(found, Refused):
        name, options = found
        assert isinstance(name, str)
        assert all(isinstance(key, str) and key for key in options)


@given(text=st.one_of(odd, st.from_regex(r"(chain:|shared:)*[a-z_]*", fullmatch=True)))
def test_augmentation_parse(text: Any) -> None:
    """Breaks when a parsed augmentation is not what its own text parses to."""
    found = result_of(lambda: iadd_fast.Augmentation.parse(text))
    if not isinstance(found, Refused | None):
        assert iadd_fast.Augmentation.parse(str(found)) == found


@given(families=odd, mode=odd, shared=odd)
def test_augmentation(families: Any, mode: Any, shared: Any) -> None:
    """Breaks when families that are no tuple of names are taken: "dsa" would be three families."""
    found = result_of(lambda: iadd_fast.Augmentation(families, mode, shared))
    assert isinstance(found, Refused)  # no odd value is a tuple of families


@given(name=odd)
def test_names(name: Any) -> None:
    """Breaks when an unhashable or foreign name of a preset or backend is another error."""
    preset = result_of(lambda: find_preset(name))
    assert isinstance(preset, Refused) or (preset is None and name is None)
    before = backends()

    def use() -> None:
        with use_backend(name):
            pass

    assert isinstance(result_of(use), Refused) or name is None
    assert backends() == before


@given(device=anything())
def test_devices(device: Any) -> None:
    """Breaks when meta, on which nothing has a value, or a device that is not here is taken."""
    found = result_of(lambda: resolve_device(device))
    if not isinstance(found, Refused):
        assert isinstance(found, torch.device)
        assert torch.ones((), device=found).item() == 1


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(DataShape)])
@given(value=anything())
def test_data_shape(name: str, value: Any) -> None:
    """Breaks when a plan's data set has half a sample, NaN for a share or a text for a shape."""
    values = {"samples": 20, "shape": (1, 4, 4), "classes": 2}
    made = result_of(lambda: DataShape(**{**values, name: value}))
    if not isinstance(made, Refused):
        assert 0 <= made.validation_fraction < 1
        assert isinstance(made.samples, int)
        assert made.samples >= made.classes >= 2


@given(samples=odd, shape=odd, classes=odd)
def test_data_shape_parse(samples: Any, shape: Any, classes: Any) -> None:
    """Breaks when a text other than numbers joined by x is a shape."""
    made = result_of(lambda: DataShape.parse(samples, shape, classes))
    assert isinstance(made, Refused)
