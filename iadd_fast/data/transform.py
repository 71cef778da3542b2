"""What happens to pixels before training, and how to undo it.

A transform is fitted once on the training images and goes into every artifact, so that test images
can take the same way and distilled images can be shown as pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

LARGEST_ZCA = 12_288
"""Values per image (64 x 64 x 3) beyond which ZCA is refused: its matrices grow with the square."""

_VALUES_AT_ONCE = 2**23


class Transform(ABC):
    """An invertible map of images ``[N, C, ...]``, independent of N, on any device.

    ``apply`` and ``invert`` keep the dtype and device of the images and leave their argument alone.
    """

    kind: ClassVar[str]
    tensor_names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def apply(self, images: Tensor) -> Tensor:
        """Pixels to the space of training."""

    @abstractmethod
    def invert(self, images: Tensor) -> Tensor:
        """The space of training back to pixels."""

    def tensors(self) -> dict[str, Tensor]:
        """The fitted tensors by name, as :func:`transform_from` takes them."""
        return {name: getattr(self, name) for name in self.tensor_names}

    def metadata(self) -> dict[str, Any]:
        """What else :func:`transform_from` needs; JSON-able."""
        return {}


@dataclass(frozen=True, eq=False)
class Identity(Transform):
    """Pixels as they are."""

    kind: ClassVar[str] = "none"
    tensor_names: ClassVar[tuple[str, ...]] = ()

    def apply(self, images: Tensor) -> Tensor:
        return images

    def invert(self, images: Tensor) -> Tensor:
        return images

    @classmethod
    def fit(cls, images: Tensor) -> Identity:
        return cls()


@dataclass(frozen=True, eq=False)
class Standardise(Transform):
    """``(x - mean_c) / std_c`` for every channel c.

    Attributes:
        mean: ``[C]``. std: ``[C]``, above 0.

    Raises:
        ValueError: the shapes differ or a value is not finite, or ``std`` is not above 0.
    """

    mean: Tensor
    std: Tensor
    kind: ClassVar[str] = "standard"
    tensor_names: ClassVar[tuple[str, ...]] = ("mean", "std")

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise ValueError(
                f"mean and std: got shapes {tuple(self.mean.shape)} and {tuple(self.std.shape)}; "
                "take one value per channel"
            )
        _check_finite("mean", self.mean)
        _check_finite("std", self.std)
        if not bool((self.std > 0).all()):
            raise ValueError(f"std: got {self.std.tolist()}; takes values above 0")

    @classmethod
    def fit(cls, images: Tensor) -> Standardise:
        """Mean and (population) standard deviation of every channel over ``images`` [N, C, ...].

        Summed in float64, kept in float32. A channel of one value only gets a deviation of 1.
        """
        _check_count(images, 1)
        # [N, C, values] -> [C]: two passes, since E[x^2] - E[x]^2 cancels.
        count = images.numel() // images.shape[1]
        mean = _sum(images, None) / count
        std = (_sum(images, mean) / count).sqrt()
        std[std <= 1e-7 * mean.abs()] = 1.0
        return cls(mean.float(), std.float())

    def apply(self, images: Tensor) -> Tensor:
        mean, std = self._broadcast(images)
        return (images - mean).div_(std)

    def invert(self, images: Tensor) -> Tensor:
        mean, std = self._broadcast(images)
        return (images * std).add_(mean)

    def _broadcast(self, images: Tensor) -> tuple[Tensor, Tensor]:
        channels = len(self.mean)
        if images.ndim < 2 or images.shape[1] != channels:
            raise ValueError(
                f"images: got shape {tuple(images.shape)}; takes {channels} channels, (N, "
                f"{channels}, ...)"
            )
        shape = (1, channels, *[1] * (images.ndim - 2))
        return self.mean.to(images).view(shape), self.std.to(images).view(shape)


@dataclass(frozen=True, eq=False)
class ZCA(Transform):
    """Whitening that stays close to the pixels: ``z = (x - mean) T``, over flattened images.

    ``T = U diag((S + eps)^-1/2) U^T`` with ``U diag(S) U^T`` the covariance of the pixels (over
    N - 1); ``x = z U diag((S + eps)^1/2) U^T + mean``. Equal to kornia's ``ZCAWhitening``, which
    MTT fits on unnormalised pixels with eps = 0.1.

    Attributes:
        mean: ``[D]``, D the values of one image. matrix: ``[D, D]``, T. inverse: ``[D, D]``.
        eps: what was added to the eigenvalues.

    Raises:
        ValueError: shapes that do not belong together or values that are not finite.
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor
    eps: float = 0.1
    kind: ClassVar[str] = "zca"
    tensor_names: ClassVar[tuple[str, ...]] = ("mean", "matrix", "inverse")

    def __post_init__(self) -> None:
        square = (self.mean.numel(), self.mean.numel())
        if self.mean.ndim != 1 or self.matrix.shape != square or self.inverse.shape != square:
            shapes = [tuple(getattr(self, name).shape) for name in self.tensor_names]
            raise ValueError(
                f"mean, matrix and inverse: got shapes {shapes[0]}, {shapes[1]} and {shapes[2]}; "
                "take (D,), (D, D) and (D, D)"
            )
        for name in self.tensor_names:
            _check_finite(name, getattr(self, name))

    @classmethod
    def fit(cls, images: Tensor, eps: float = 0.1) -> ZCA:
        """From unnormalised ``images`` [N, ...]; computed in float64, kept in float32.

        Raises:
            ValueError: fewer than two images, ``eps`` not above 0, or images of more than
                12,288 values.
        """
        _check_count(images, 2)
        if not eps > 0:
            raise ValueError(f"eps: got {eps}; takes a number above 0")
        values = images[0].numel()
        if values > LARGEST_ZCA:
            raise ValueError(
                f"zca: got images of shape {tuple(images.shape[1:])}, {values:,} values each; "
                f"takes at most {LARGEST_ZCA:,} (its two matrices would hold {values:,} x "
                f"{values:,} values); use 'standard' or smaller images"
            )
        flat = images.flatten(1)
        mean = flat.mean(0, dtype=torch.float64)
        covariance = torch.zeros(values, values, dtype=torch.float64, device=images.device)
        for chunk in flat.split(max(1, _VALUES_AT_ONCE // values)):
            centred = chunk.double() - mean
            covariance.addmm_(centred.T, centred)
        eigenvalues, vectors = torch.linalg.eigh(covariance.div_(len(images) - 1))
        root = (eigenvalues.clamp_min_(0) + eps).sqrt()
        return cls(
            mean.float(),
            ((vectors / root) @ vectors.T).float(),
            ((vectors * root) @ vectors.T).float(),
            eps,
        )

    def apply(self, images: Tensor) -> Tensor:
        flat = self._flat(images)
        return ((flat - self.mean.to(flat)) @ self.matrix.to(flat)).view(images.shape)

    def invert(self, images: Tensor) -> Tensor:
        flat = self._flat(images)
        return (flat @ self.inverse.to(flat)).add_(self.mean.to(flat)).view(images.shape)

    def metadata(self) -> dict[str, Any]:
        return {"eps": self.eps}

    def _flat(self, images: Tensor) -> Tensor:
        values = len(self.mean)
        if images.ndim < 2 or images.shape[1:].numel() != values:
            raise ValueError(
                f"images: got shape {tuple(images.shape)}; takes images of {values} values, (N, "
                "channels, ...)"
            )
        return images.flatten(1)


_KINDS: dict[str, type[Identity | Standardise | ZCA]] = {
    kind.kind: kind for kind in (Identity, Standardise, ZCA)
}
NORMALISATIONS = tuple(_KINDS)


def fit(kind: str, images: Tensor) -> Transform:
    """The transform ``"standard"``, ``"zca"`` or ``"none"``, fitted on raw ``images``."""
    return _kind(kind, "normalise").fit(images)


def transform_from(
    kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> Transform:
    """The transform that gave this ``kind``, ``tensors()`` and ``metadata()``.

    Raises:
        ValueError: an unknown kind; a tensor is missing, too many or does not fit.
    """
    build = _kind(kind, "transform")
    if set(tensors) != set(build.tensor_names):
        raise ValueError(
            f"transform {kind!r}: got tensors {sorted(tensors)}; takes {sorted(build.tensor_names)}"
        )
    arguments: dict[str, Any] = {**tensors, **metadata}
    try:
        return build(**arguments)
    except TypeError as error:
        raise ValueError(f"transform {kind!r}: {error}") from None


def _kind(kind: str, argument: str) -> type[Identity | Standardise | ZCA]:
    if not isinstance(kind, str) or kind not in _KINDS:
        takes = ", ".join(map(repr, _KINDS))
        raise ValueError(f"{argument}: got {kind!r}; takes one of {takes}")
    return _KINDS[kind]


def _sum(images: Tensor, mean: Tensor | None) -> Tensor:
    """Per channel, in float64: the sum of the values, or of their squared distances to ``mean``."""
    total = torch.zeros(images.shape[1], dtype=torch.float64, device=images.device)
    for chunk in images.split(max(1, _VALUES_AT_ONCE // images[0].numel())):
        values = chunk.flatten(2).double()
        if mean is not None:
            values = values.sub_(mean[:, None]).square_()
        total += values.sum((0, 2))
    return total


def _check_count(images: Tensor, least: int) -> None:
    if images.ndim < 2 or len(images) < least or images.numel() == 0:
        raise ValueError(
            f"images: got shape {tuple(images.shape)}; takes at least {least} of (channels, ...)"
        )


def _check_finite(name: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name}: got values that are not finite")
