"""Any ``torch.utils.data.Dataset`` of (image, label) items, read once into memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from iadd_fast.data.sources.arrays import as_part, from_tensor
from iadd_fast.data.sources.folder import is_gray, pixels
from iadd_fast.data.sources.part import Source, checked_name


def read(dataset: Dataset[Any], where: str) -> Source:
    """All items of ``dataset`` as one part; class names from its ``classes`` where it has them.

    An image is a tensor, an array or a Pillow image, all of one shape; a label is a whole number or
    text. Random augmentation in the dataset would be frozen as it fell: leave it out.

    Raises:
        ValueError: an item is no such pair, shapes differ, there are no items, or a class has a
            name that is no valid Unicode.
    """
    if isinstance(dataset, TensorDataset):
        if len(dataset.tensors) != 2:
            raise ValueError(
                f"{where}: got a TensorDataset of {len(dataset.tensors)} tensors; takes two, "
                "images and labels"
            )
        images, labels = dataset.tensors
        part = as_part(images, labels, f"{where} images", f"{where} labels")
    else:
        part = as_part(*_collect(dataset, where), f"{where} images", f"{where} labels")
    names = getattr(dataset, "classes", None)
    fits = (
        isinstance(names, list | tuple)
        and all(isinstance(name, str) for name in names)
        and part.labels.dtype.kind == "i"
        and part.labels.min() >= 0
        and part.labels.max() < len(names)
    )
    known = None
    if fits and names:
        known = tuple(checked_name(name, f"{where}: its classes hold a name") for name in names)
    return Source(type(dataset).__name__, {"train": part}, known)


def _collect(dataset: Dataset[Any], where: str) -> tuple[NDArray[Any], list[Any]]:
    images: list[NDArray[Any]] = []
    labels: list[Any] = []
    for index, item in enumerate(_items(dataset, where)):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(
                f"{where}: item {index} is a {type(item).__name__}; takes pairs (image, label)"
            )
        image, label = _image(item[0], f"{where}: item {index}"), item[1]
        if isinstance(label, Tensor):
            label = from_tensor(label, f"{where}: the label of item {index}").tolist()
        if images and (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
            raise ValueError(
                f"{where}: item {index} is {image.dtype} of shape {image.shape}, item 0 is "
                f"{images[0].dtype} of shape {images[0].shape}; takes images of one kind"
            )
        images.append(image)
        labels.append(label)
    if not images:
        raise ValueError(f"{where}: got a {type(dataset).__name__} without items")
    return np.stack(images), labels


def _items(dataset: Dataset[Any], where: str) -> Iterable[Any]:
    if isinstance(dataset, IterableDataset):
        return dataset
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{where}: got a {type(dataset).__name__} without a length; takes one "
            "with __len__ and __getitem__"
        )
    return (dataset[index] for index in range(len(dataset)))


def _image(value: Any, where: str) -> NDArray[Any]:
    if isinstance(value, Tensor):
        return from_tensor(value, where)
    if isinstance(value, Image.Image):
        return pixels(value, is_gray(value), where)
    if isinstance(value, np.ndarray):
        return value
    raise ValueError(
        f"{where} holds a {type(value).__name__}; takes a tensor, array or Pillow image"
    )
