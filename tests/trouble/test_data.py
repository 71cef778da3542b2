"""Degenerate data: one class, one image, constant images, images of extreme scale."""

from __future__ import annotations

import pytest
import torch

from iadd_fast import distill, load_data, train_experts
from iadd_fast.data.transform import ZCA
from tests.trouble.small import CONVNET, QUICK, blobs, draw


def images(count: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=draw(5)) * scale


def test_data_of_one_class() -> None:
    """All labels equal: nothing to learn, said with the class and before anything is made of it."""
    with pytest.raises(ValueError, match="20 images of one class only .'7'.; expected two classes"):
        load_data(images(20), torch.full((20,), 7))


def test_a_class_with_one_image_stays_in_training() -> None:
    """Held out for testing or validation it would leave a class that no expert has seen."""
    labels = torch.tensor([0] * 20 + [1] * 20 + [2])
    data = load_data(images(41), labels)
    assert torch.bincount(data.train.labels).tolist()[2] == 1
    assert data.test is not None and set(data.test.labels.tolist()) == {0, 1}
    assert set(data.validation.labels.tolist()) == {0, 1}


def test_one_image_a_class_altogether() -> None:
    """No validation and no test part: the run takes the set of its last validation, and says so by
    an accuracy of None."""
    data = load_data(images(3), torch.arange(3))
    assert len(data.validation) == 0 and (data.test is None or len(data.test) == 0)
    experts = train_experts(data, CONVNET, count=1, epochs=2, augment="none", progress=False)
    made = distill(data, experts, 1, student=CONVNET, **QUICK)
    assert made.summary["validation_accuracy"] is None
    assert made.summary["iteration"] == QUICK["iterations"]
    with pytest.raises(ValueError, match="images_per_class: got 2; class '0' has 1 training"):
        distill(data, experts, 2, student=CONVNET, **QUICK)


@pytest.mark.parametrize("value", [0.0, 0.1, 255.0])
@pytest.mark.parametrize("normalise", ["standard", "zca", "none"])
def test_images_of_one_value(value: float, normalise: str) -> None:
    """A deviation of 0 (or of the rounding of a mean): 0 / 0, or noise blown up to size 1."""
    data = load_data(torch.full((20, 1, 8, 8), value), torch.arange(20) % 2, normalise=normalise)
    wanted = value if normalise == "none" else 0.0
    assert float((data.train.images - wanted).abs().max()) <= 1e-5 * value
    pixels = data.transform.invert(data.train.images)
    torch.testing.assert_close(pixels, torch.full_like(pixels, value))


def test_a_channel_of_one_value_beside_others() -> None:
    """An alpha channel: its deviation is taken as 1, the other channels keep theirs."""
    pixels = torch.cat([images(20, 3.0), torch.full((20, 1, 8, 8), 0.7)], 1)
    data = load_data(pixels, torch.arange(20) % 2, test_fraction=0, validation_fraction=0)
    assert float(data.train.images[:, 1].abs().max()) < 1e-6
    assert float(data.train.images[:, 0].std()) == pytest.approx(1.0, abs=1e-3)


def test_whitening_fewer_images_than_pixels() -> None:
    """A covariance of rank N - 1 of 64: eigenvalues of 0, and below it by rounding."""
    few = images(4)
    transform = ZCA.fit(few)
    white = transform.apply(few)
    assert float(white.abs().max()) < 10
    torch.testing.assert_close(transform.invert(white), few, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_images_of_any_scale_are_standardised(scale: float) -> None:
    """Sums of squares in float32 are 0 below 1e-23 and infinite above 1e19."""
    standard = load_data(images(20), torch.arange(20) % 2)
    scaled = load_data(images(20, scale), torch.arange(20) % 2)
    torch.testing.assert_close(scaled.train.images, standard.train.images, rtol=1e-4, atol=1e-5)


def test_a_small_contrast_on_a_large_offset() -> None:
    """E[x^2] - E[x]^2 would be negative: pixels of 1e4 with a spread of 0.01."""
    data = load_data(1e4 + images(20, 1e-2), torch.arange(20) % 2)
    assert float(data.train.images.std()) == pytest.approx(1.0, rel=0.05)


def test_black_data_go_through_the_whole_run() -> None:
    """Experts of black images learn their biases; a run on them ends, at chance."""
    data = load_data(torch.zeros(30, 1, 8, 8), torch.arange(30) % 3)
    experts = train_experts(data, CONVNET, count=1, epochs=2, augment="none", progress=False)
    made = distill(data, experts, 1, student=CONVNET, **QUICK)
    assert made.summary["skipped"] == 0
    assert made.summary["validation_accuracy"] == pytest.approx(100 / 3)


def test_more_images_than_a_class_has() -> None:
    """Found before experts are trained, with the class that lacks them."""
    with pytest.raises(ValueError, match="images_per_class: got 50; class '0' has 6 training im"):
        distill(blobs(), None, 50, student=CONVNET, **QUICK)
