"""What happens to pixels before training, and how to undo it.

A transform is fitted once on the training images and goes into every artifact, so that test images
can take the same way and distilled images can be shown as pixels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.data.pixels import images_at_once

LARGEST_ZCA = 12_288
"""Values per image (64 x 64 x 3) beyond which ZCA is refused: its matrices grow with the square."""


class Images(Protocol):
    """What transforms are fitted on: a tensor, or images that are read piece by piece."""

    @property
    def shape(self) -> Sequence[int]:
        """``(N, C, ...)``."""
        ...

    def split(self, count: int, /) -> Iterable[Tensor]:
        """Pieces of ``count`` images."""
        ...


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
    def fit(cls, images: Images) -> Identity:
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
        for name in self.tensor_names:
            _check_floats(name, getattr(self, name))
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
    def fit(cls, images: Images) -> Standardise:
        """Mean and (population) standard deviation of every channel over ``images`` [N, C, ...].

        Summed in float64, kept in float32. A channel of one value only gets a deviation of 1.
        """
        _check_count(images, 1)
        # [N, C, values] -> [C]: two passes, since E[x^2] - E[x]^2 cancels.
        count = math.prod(images.shape) // images.shape[1]
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
        _check_floats("images", images)
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
        for name in self.tensor_names:
            _check_floats(name, getattr(self, name))
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
    def fit(cls, images: Images, eps: float = 0.1) -> ZCA:
        """From unnormalised ``images`` [N, ...]; computed in float64, kept in float32.

        Raises:
            ValueError: fewer than two images, ``eps`` not above 0, or images of more than
                12,288 values.
        """
        _check_count(images, 2)
        eps = arguments.number("eps", eps, above=0)
        values = math.prod(images.shape[1:])
        if values > LARGEST_ZCA:
            raise ValueError(
                f"zca: got images of shape {tuple(images.shape[1:])}, {values:,} values each; "
                f"takes at most {LARGEST_ZCA:,} (its two matrices would hold {values:,} x "
                f"{values:,} values); use 'standard' or smaller images"
            )
        total: Tensor | float = 0.0
        for chunk in images.split(images_at_once(images.shape)):
            total = total + chunk.flatten(1).sum(0, dtype=torch.float64)
        assert isinstance(total, Tensor)
        mean = total / images.shape[0]
        covariance = torch.zeros(values, values, dtype=torch.float64, device=mean.device)
        # As large as the matrix itself, which a small piece would be read and written for.
        for chunk in images.split(max(values, images_at_once(images.shape))):
            centred = chunk.flatten(1).double() - mean
            covariance.addmm_(centred.T, centred)
        _check_finite("images", covariance)
        eigenvalues, vectors = torch.linalg.eigh(covariance.div_(images.shape[0] - 1))
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
        _check_floats("images", images)
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
#: The names of each kind's fitted tensors.
TENSOR_NAMES = {name: kind.tensor_names for name, kind in _KINDS.items()}


def fit(kind: str, images: Images) -> Transform:
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
    arguments.instance("metadata", metadata, Mapping, "a mapping")
    for name, tensor in tensors.items():
        _check_floats(name, tensor)
    if set(tensors) != set(build.tensor_names):
        raise ValueError(
            f"transform {kind!r}: got tensors {sorted(tensors)}; takes {sorted(build.tensor_names)}"
        )
    unknown = set(metadata) - ({"eps"} if kind == ZCA.kind else set())
    if unknown or not all(isinstance(value, int | float) for value in metadata.values()):
        raise ValueError(f"transform {kind!r}: got the metadata {sorted(metadata)}")
    if not all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors.values()):
        raise ValueError(f"transform {kind!r}: takes tensors of torch.float32 or torch.float64")
    values: dict[str, Any] = {**tensors, **metadata}
    try:
        return build(**values)
    except TypeError as error:
        raise ValueError(f"transform {kind!r}: {error}") from None


def _kind(kind: str, argument: str) -> type[Identity | Standardise | ZCA]:
    return _KINDS[arguments.choice(argument, kind, _KINDS)]


def _sum(images: Images, mean: Tensor | None) -> Tensor:
    """Per channel, in float64: the sum of the values, or of their squared distances to ``mean``."""
    total: Tensor | float = 0.0
    for chunk in images.split(images_at_once(images.shape)):
        values = chunk.reshape(*chunk.shape[:2], -1).double()
        if mean is not None:
            # Not in place: of float64 images `double` is the images themselves.
            values = (values - mean[:, None]).square_()
        total = total + values.sum((0, 2))
    assert isinstance(total, Tensor)
    return total


def _check_count(images: Images, least: int) -> None:
    if isinstance(images, Tensor):
        _check_floats("images", images)
    shape = tuple(images.shape)
    if len(shape) < 2 or shape[0] < least or math.prod(shape) == 0:
        raise ValueError(f"images: got shape {shape}; takes at least {least} of (channels, ...)")


def _check_floats(name: str, values: Tensor) -> None:
    if not arguments.tensor(name, values).is_floating_point():
        raise ValueError(f"{name}: got {arguments.shown(values)}; takes floats")


def _check_finite(name: str, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name}: got values that are not finite")
