from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from iadd_fast.data import ZCA, Identity, Standardise, Transform, transform_from


def images(count: int = 60, shape: tuple[int, ...] = (3, 4, 5), seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    values = torch.rand(count, *shape, generator=draw)
    # Neighbouring pixels are correlated, channels differ in brightness.
    values = 0.6 * values + 0.4 * values.roll(1, -1)
    scale = torch.linspace(0.5, 1.0, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return values * scale + 0.1


def fitted() -> dict[str, Transform]:
    return {
        "none": Identity.fit(images()),
        "standard": Standardise.fit(images()),
        "zca": ZCA.fit(images()),
    }


def test_zca_gives_the_values_of_kornias_documentation() -> None:
    """Breaks if the covariance is taken over N (not N - 1) or the square root is forgotten."""
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    wanted = torch.tensor([[0.0, 1.1547], [1.0, -0.5773], [-1.0, -0.5773]])
    torch.testing.assert_close(ZCA.fit(x, eps=1e-6).apply(x), wanted, atol=1e-4, rtol=0)


def test_zca_equals_the_formula_in_float64() -> None:
    """Breaks if eps, the order of the factors, the mean or the flattening differs from kornia's."""
    x, new = images(), images(7, seed=1)
    flat = x.flatten(1).double().numpy()
    mean = flat.mean(0)
    u, s, _ = np.linalg.svd((flat - mean).T @ (flat - mean) / (len(flat) - 1))
    matrix = u @ np.diag((s + 0.1) ** -0.5) @ u.T
    inverse = u @ np.diag((s + 0.1) ** 0.5) @ u.T
    got = ZCA.fit(x)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(got.matrix, matrix, atol=3e-7)
    np.testing.assert_allclose(got.inverse, inverse, atol=3e-7)
    wanted = (new.flatten(1).double().numpy() - mean) @ matrix
    np.testing.assert_allclose(got.apply(new).flatten(1), wanted, atol=2e-6)
    assert got.apply(new).shape == new.shape


def test_zca_of_fewer_images_than_pixels_is_finite() -> None:
    """Breaks if an eigenvalue that rounds below zero reaches the square root."""
    few = images(3) * 1e6
    whitener = ZCA.fit(few, eps=1e-9)
    assert torch.isfinite(whitener.apply(few)).all()


@pytest.mark.parametrize("kind", ["none", "standard", "zca"])
def test_invert_undoes_apply(kind: str) -> None:
    """Breaks if invert uses the wrong factor, forgets the mean or is another map for new images."""
    transform, new = fitted()[kind], images(5, seed=2)
    before = new.clone()
    torch.testing.assert_close(transform.invert(transform.apply(new)), new, atol=2e-6, rtol=0)
    assert torch.equal(new, before), "apply or invert wrote into its argument"
    assert transform.apply(new.double()).dtype == torch.float64


def test_standardise_takes_each_channel_over_images_and_places() -> None:
    """Breaks if the deviation is over N - 1, per pixel, per image, or of all channels together."""
    x = images()
    got = Standardise.fit(x)
    exact = x.double().numpy()
    np.testing.assert_allclose(got.mean, exact.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(got.std, exact.std((0, 2, 3)), rtol=1e-6)
    wanted = (exact - exact.mean((0, 2, 3), keepdims=True)) / exact.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(got.apply(x), wanted, atol=2e-6)


def test_standardise_far_from_zero() -> None:
    """Breaks if the deviation comes from E[x^2] - E[x]^2, or is summed in float32."""
    x = 4096.0 + torch.arange(4000).remainder(2).float().view(1000, 1, 2, 2)
    got = Standardise.fit(x)
    assert (got.mean.item(), got.std.item()) == (4096.5, 0.5)


def test_standardise_of_more_values_than_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if sums over chunks lose a chunk or the last, smaller one."""
    whole, zca = Standardise.fit(images()), ZCA.fit(images())
    monkeypatch.setattr("iadd_fast.data.pixels.VALUES_AT_ONCE", 7 * 60)
    torch.testing.assert_close(Standardise.fit(images()).mean, whole.mean)
    torch.testing.assert_close(Standardise.fit(images()).std, whole.std)
    torch.testing.assert_close(ZCA.fit(images()).matrix, zca.matrix, atol=1e-6, rtol=0)


def test_a_constant_channel_stays_finite() -> None:
    """Breaks if a channel of one value is divided by its deviation of (nearly) zero."""
    x = images()
    x[:, 1] = 0.1
    result = Standardise.fit(x).apply(x)
    assert result[:, 1].abs().max() < 1e-6
    assert result[:, 0].std() > 0.9


def test_series_are_standardised_per_channel() -> None:
    """Breaks if the mean is shaped for pictures only."""
    x = torch.stack([torch.arange(4.0), 10 * torch.arange(4.0)]).expand(3, 2, 4)
    result = Standardise.fit(x).apply(x)
    torch.testing.assert_close(result[:, 0], result[:, 1])
    assert result.shape == (3, 2, 4)


@pytest.mark.parametrize("kind", ["none", "standard", "zca"])
def test_a_transform_comes_back_from_its_tensors(kind: str) -> None:
    """Breaks if tensors() or metadata() lacks something that apply or invert needs."""
    transform = fitted()[kind]
    metadata = json.loads(json.dumps(transform.metadata()))
    again = transform_from(transform.kind, transform.tensors(), metadata)
    assert again.kind == kind and again.metadata() == transform.metadata()
    assert torch.equal(again.apply(images()), transform.apply(images()))
    assert torch.equal(again.invert(images()), transform.invert(images()))


def test_zca_refuses_images_whose_matrix_would_not_fit() -> None:
    """Breaks if someone's 128 x 128 photographs ask for gigabytes instead of giving an error."""
    with pytest.raises(
        ValueError, match=r"\(3, 65, 64\), 12,480 values each; takes at most 12,288"
    ):
        ZCA.fit(torch.zeros(2, 3, 65, 64))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ZCA.fit(images(1)), "images: got shape (1, 3, 4, 5); takes at least 2"),
        (lambda: ZCA.fit(images(), eps=0.0), "eps: got 0.0"),
        (lambda: ZCA.fit(images()).apply(torch.zeros(2, 3, 4, 4)), "takes images of 60 values"),
        (lambda: Standardise.fit(images()).apply(torch.zeros(2, 1, 4, 5)), "takes 3 channels"),
        (lambda: Standardise(torch.zeros(2), torch.tensor([1.0, 0.0])), "takes values above 0"),
        (lambda: Standardise(torch.zeros(2), torch.ones(3)), "got shapes (2,) and (3,)"),
        (lambda: Standardise(torch.full((1,), torch.nan), torch.ones(1)), "mean: got values"),
        (lambda: ZCA(torch.zeros(2), torch.eye(3), torch.eye(2)), "(2,), (3, 3) and (2, 2)"),
        (lambda: transform_from("magic", {}, {}), "transform: got 'magic'"),
        (lambda: transform_from("standard", {"mean": torch.zeros(1)}, {}), "['mean', 'std']"),
        (lambda: transform_from("none", {}, {"sharpness": 1}), "sharpness"),
    ],
)
def test_bad_transforms_are_refused(call: Any, text: str) -> None:
    """Breaks if a wrong value passes, or gives an error that does not say what is taken."""
    with pytest.raises(ValueError) as caught:
        call()
    assert text in str(caught.value)
