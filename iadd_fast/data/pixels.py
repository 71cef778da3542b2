"""Raw images in an order of their own, read piece by piece, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Values of one piece: 1 MiB as float32.
VALUES_AT_ONCE = 2**18


class Pixels:
    """Images of one or more arrays, one after the other, or some of them in another order.

    Nothing is copied before it is asked for, so that arrays mapped from files stay there.

    Args:
        arrays: uint8, or floats (read as float32), each ``[N_i, C, ...]``, of one dtype and shape.
        rows: places in their concatenation ``[N]``; None: all in order.

    Attributes:
        shape: ``(N, C, ...)``. dtype: uint8 or float32.
    """

    def __init__(self, arrays: Sequence[NDArray[Any]], rows: NDArray[Any] | None = None) -> None:
        self.arrays = tuple(arrays)
        self.rows = np.arange(sum(map(len, self.arrays))) if rows is None else rows
        self.shape: tuple[int, ...] = (len(self.rows), *self.arrays[0].shape[1:])
        self.dtype = np.dtype(np.uint8 if self.arrays[0].dtype == np.uint8 else np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: NDArray[Any]) -> Pixels:
        """The images at ``places``, in that order."""
        return Pixels(self.arrays, self.rows[places])

    def joined(self, array: NDArray[Any]) -> Pixels:
        """These and then all images of ``array``."""
        held = sum(map(len, self.arrays))
        rows = np.concatenate([self.rows, np.arange(held, held + len(array))])
        return Pixels([*self.arrays, array], rows)

    def raw(self, count: int | None = None) -> Iterator[NDArray[Any]]:
        """The images as they are, in pieces of ``count``, contiguous and in memory of their own."""
        count = self.count if count is None else count
        for begin in range(0, len(self), count):
            rows = self.rows[begin : begin + count]
            piece = np.empty((len(rows), *self.shape[1:]), self.dtype)
            start = 0
            for array in self.arrays:
                mine = (rows >= start) & (rows < start + len(array))
                if mine.any():
                    piece[mine] = array[rows[mine] - start]
                start += len(array)
            yield piece

    def split(self, count: int) -> Iterator[Tensor]:
        """The images as float32 in pieces of ``count``, uint8 divided by 255 as ToTensor does."""
        for piece in self.raw(count):
            if piece.dtype == np.uint8:
                piece = np.divide(piece, np.float32(255), dtype=np.float32)
            yield torch.from_numpy(piece)

    @property
    def count(self) -> int:
        """Images of a piece."""
        return images_at_once(self.shape)

    def fingerprint(self, labels: NDArray[Any]) -> str:
        """SHA-256 (hex) of dtype, shape and bytes of the images, then of ``labels``."""
        digest = hashlib.sha256(f"{self.dtype.name}{self.shape}".encode())
        for piece in self.raw():
            digest.update(piece.reshape(-1).view(np.uint8).data)
        digest.update(f"{labels.dtype.name}{labels.shape}".encode())
        digest.update(np.ascontiguousarray(labels).view(np.uint8).data)
        return digest.hexdigest()


def images_at_once(shape: Sequence[int]) -> int:
    """Images ``(N, C, ...)`` that make a piece of :data:`VALUES_AT_ONCE` values, at least one."""
    return int(max(1, VALUES_AT_ONCE // max(1, int(np.prod(shape[1:])))))
