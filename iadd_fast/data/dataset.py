"""A loaded data set: its parts, its classes and the transform its images went through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.data.transform import Transform
from iadd_fast.devices import resolve_device

#: Most samples that may be chosen at once: more is a mistake, which would fill the memory.
MOST_CHOSEN = 2**31


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Attributes:
        images: float32 ``[N, C, H, W]`` (series: ``[N, C, L]``), already transformed.
        labels: int64 ``[N]``, from 0 to classes - 1.

    Raises:
        TypeError, ValueError: the counts differ, the images are no floats, or the labels are not
            int64 ``[N]``.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        arguments.instance("images", self.images, Tensor, "a tensor")
        arguments.instance("labels", self.labels, Tensor, "a tensor")
        if self.images.ndim < 2 or not self.images.is_floating_point():
            raise ValueError(
                f"images: got {arguments.shown(self.images)}; takes floats (N, channels, ...)"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: got {self.labels.dtype} of shape {tuple(self.labels.shape)} for images "
                f"of shape {tuple(self.images.shape)}; takes int64, one label per image"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same part on ``device``."""
        if str(device) != "meta":
            device = resolve_device(device)
        return Split(self.images.to(device), self.labels.to(device))

    def subset(self, indices: Tensor | Sequence[int]) -> Split:
        """The images and labels at ``indices``, in that order.

        Raises:
            TypeError, ValueError: they are no whole numbers (a mask is none either).
            IndexError: one is out of range.
        """
        if not isinstance(indices, Tensor):
            arguments.instance("indices", indices, Sequence, "whole numbers")
            indices = torch.tensor(
                [arguments.whole("indices", index, least=0) for index in indices],
                dtype=torch.int64,
            )
        arguments.tensor("indices", indices)
        if indices.dtype != torch.int64 or indices.ndim != 1:
            raise ValueError(f"indices: got {arguments.shown(indices)}; takes int64 (count,)")
        if len(indices) > MOST_CHOSEN:
            raise ValueError(f"indices: got {len(indices):,}; takes at most {MOST_CHOSEN:,}")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(
                f"indices: got {int(indices.min())} to {int(indices.max())}; takes 0 to "
                f"{len(self) - 1}"
            )
        chosen = indices.to(self.labels.device)
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(eq=False)
class Data:
    """A data set, in memory or mapped from a file (``load_data(cache=...)``).

    Attributes:
        name: what reports call it.
        train: the part that experts and distillation see.
        validation: held out of the training images to choose the best iteration; may be empty.
        test: seen by the final evaluation only; None where there is none.
        class_names: one text per class; ``class_names[c]`` belongs to label ``c``.
        transform: what the images of all parts went through; ``transform.invert`` undoes it.
        fingerprint: SHA-256 (hex) of all raw training images, validation included, and their
            labels. Does not depend on the transform, the validation split or the test part.
        test_rows: bool, one value for each training row of the source, true where the row was held
            out for ``test`` (in this order); None where ``test`` has a source of its own or is
            None.
        split: SHA-256 (hex) of which rows of the source are in which of ``train`` and
            ``validation``; empty where they did not come from :func:`iadd_fast.load_data`.
    """

    name: str
    train: Split
    validation: Split
    test: Split | None
    class_names: tuple[str, ...]
    transform: Transform
    fingerprint: str
    test_rows: Tensor | None = None
    split: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one image, ``(C, H, W)``, or of one series, ``(C, L)``."""
        return tuple(self.train.images.shape[1:])

    def all_training(self) -> Split:
        """Training and validation part together, in this order; not to be written to.

        Nothing is copied where they are neighbours in memory, as :func:`load_data` leaves them.
        """
        if len(self.validation) == 0:
            return self.train
        return Split(
            _joined(self.train.images, self.validation.images),
            _joined(self.train.labels, self.validation.labels),
        )

    def to(self, device: torch.device | str) -> Data:
        """The same data with its parts on ``device`` (the transform works on any device)."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=None if self.test is None else self.test.to(device),
        )


def _joined(first: Tensor, second: Tensor) -> Tensor:
    neighbours = (
        first.is_contiguous()
        and second.is_contiguous()
        and (first.dtype, first.shape[1:]) == (second.dtype, second.shape[1:])
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
        and second.storage_offset() == first.storage_offset() + first.numel()
    )
    if not neighbours:
        return torch.cat([first, second])
    return first.as_strided((len(first) + len(second), *first.shape[1:]), first.stride())
