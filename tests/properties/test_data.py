"""``load_data``, ``Split``, ``Data``, the transforms: arrays and settings of every kind.

Each test breaks when something that is no image, label, share or path is taken, fails inside of
numpy or torch, or is changed in the caller's hands.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from iadd_fast import load_data
from iadd_fast.data import ZCA, Data, Identity, Split, Standardise, transform_from
from tests.properties.strategies import (
    Refused,
    anything,
    normal,
    odd,
    odd_tensors,
    readable,
    result_of,
    small_data,
    strided,
)

OPTIONS = (
    "labels", "test", "test_labels", "normalise", "validation_fraction", "test_fraction",
    "image_size", "name", "seed", "cache",
)  # fmt: skip
IMAGES, LABELS = normal(8, 1, 4, 4), torch.arange(8) % 2


def check(data: Data, images: Tensor) -> None:
    """What every loaded data set is: finite float32, labels in range, invertible."""
    total = len(data.train) + len(data.validation) + (0 if data.test is None else len(data.test))
    assert total == len(images)
    for split in (data.train, data.validation, data.test):
        if split is not None and len(split):
            assert split.images.dtype == torch.float32
            assert split.images.isfinite().all()
            assert 0 <= int(split.labels.min()) <= int(split.labels.max()) < data.num_classes


@given(data=st.data())
def test_values(data: st.DataObject) -> None:
    """Breaks when memory, dtype or layout changes a pixel, or a sample gets another's label."""
    draw = data.draw
    count = draw(st.integers(4, 9))
    labels = torch.arange(count) % 2
    kind = draw(st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.uint8)))
    pixels = normal(count, 1, 4, 4, seed=draw(st.integers(0, 3)))
    pixels = (100 * pixels.abs()).clamp(0, 255).to(kind) if kind == torch.uint8 else pixels.to(kind)
    odd_pixels, odd_labels = draw(strided(pixels)), draw(strided(labels))
    source: Any = odd_pixels
    form = draw(st.sampled_from(("tensor", "array", "reversed array")))
    if form != "tensor" and kind != torch.bfloat16:
        source = odd_pixels.detach().numpy()
        if form == "reversed array":  # strides below 0
            source = np.ascontiguousarray(source[::-1])[::-1]
    normalise = draw(st.sampled_from(("none", "standard", "zca")))
    fractions: dict[str, Any] = {
        "validation_fraction": draw(st.sampled_from((0, 0.3))),
        "test_fraction": draw(st.sampled_from((0.0, 0.4))),
    }
    got = result_of(
        lambda: load_data(source, odd_labels, normalise=normalise, **fractions),
        odd_pixels,
        odd_labels,
    )
    if isinstance(got, Refused):
        assert normalise == "zca"
        assert "at least 2" in got
        return
    check(got, pixels)
    wanted = pixels.float() / (255 if kind == torch.uint8 else 1)
    parts = [part for part in (got.train, got.validation, got.test) if part is not None]
    found = torch.cat([got.transform.invert(part.images) for part in parts if len(part)])
    belongs = torch.cat([part.labels for part in parts])
    distance = (found[:, None] - wanted[None]).flatten(2).abs().amax(2)
    nearest = distance.argmin(1)
    assert distance.amin(1).max() <= 1e-3
    assert sorted(nearest.tolist()) == list(range(count))
    assert torch.equal(labels[nearest], belongs)


@pytest.mark.parametrize("name", OPTIONS)
@given(value=anything())
def test_one_odd_argument(name: str, value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Breaks when an option is used before it is checked, or a refused one leaves a file."""
    folder = tmp_path_factory.mktemp("odd")
    before = Path.cwd()
    os.chdir(folder)
    try:
        got = result_of(lambda: load_data(IMAGES, **{"labels": LABELS, name: value}), value)
        if isinstance(got, Refused):
            assert not list(folder.rglob("*"))
        else:
            check(got, IMAGES)
    finally:
        os.chdir(before)


@given(source=anything())
def test_odd_sources(source: Any) -> None:
    """Breaks when an object, a complex, a boolean or a sparse array counts as images."""
    got = result_of(lambda: load_data(source, LABELS), source)
    if not isinstance(got, Refused):
        check(got, source)
        assert readable(source)


@given(images=odd_tensors(), labels=anything())
def test_odd_images_and_labels(images: Tensor, labels: Any) -> None:
    """Breaks when a check of the one relies on the other."""
    got = result_of(lambda: load_data(images, labels), images, labels)
    if not isinstance(got, Refused):
        check(got, images)


@given(images=anything(), labels=anything())
def test_split(images: Any, labels: Any) -> None:
    """Breaks when a part of a data set is made of what training cannot use."""
    made = result_of(lambda: Split(images, labels), images, labels)
    if not isinstance(made, Refused):
        assert made.images.is_floating_point()
        assert len(made) == len(images)
    made = result_of(lambda: Split(IMAGES, labels), labels)
    assert isinstance(made, Refused) or made.labels.shape == (8,)


@given(indices=anything(), device=anything())
def test_parts(indices: Any, device: Any) -> None:
    """Breaks when a subset of NaNs, or a move to nowhere, is an error without a name."""
    data = small_data()
    part = result_of(lambda: data.train.subset(indices), indices)
    if not isinstance(part, Refused):
        wanted = [int(index) for index in indices]
        assert torch.equal(part.labels, data.train.labels[wanted])
    moved = result_of(lambda: data.to(device))
    if not isinstance(moved, Refused) and str(device) != "meta":
        assert torch.equal(moved.train.images, data.train.images)


@given(kind=odd, mean=anything(), std=anything(), metadata=odd)
def test_transforms(kind: Any, mean: Any, std: Any, metadata: Any) -> None:
    """Breaks when a file's transform divides by 0, NaN or nothing."""
    result_of(lambda: transform_from(kind, {}, metadata))
    for tensors in ({"mean": mean, "std": std}, {"mean": torch.zeros(1), "std": std}):
        made = result_of(partial(transform_from, "standard", tensors, {}), mean, std)
        if not isinstance(made, Refused):
            assert made.std.min() > 0
            assert torch.isfinite(made.invert(torch.ones(1, len(made.std), 2))).all()
    made = result_of(
        lambda: transform_from("zca", {"mean": mean, "matrix": std, "inverse": std}, metadata)
    )
    assert isinstance(made, Refused)


@given(images=odd_tensors())
def test_fit_and_apply(images: Tensor) -> None:
    """Breaks when statistics of nothing, of integers or of NaN are fitted or applied."""
    for kind in (Standardise, ZCA):
        if images.numel() > 10_000:
            continue  # no copy of a terabyte
        made = result_of(partial(kind.fit, images), images)
        if not isinstance(made, Refused):
            assert torch.isfinite(made.apply(images)).all()
    standard = Standardise(torch.zeros(1), torch.ones(1))
    for transform in (standard, Identity()):
        if images.numel() > 10_000:
            continue
        got = result_of(partial(transform.apply, images), images)
        if not isinstance(got, Refused):
            assert got.shape == images.shape
