"""From any source to :class:`~iadd_fast.data.dataset.Data`: read, split, scale, normalise."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from iadd_fast import arguments
from iadd_fast.data import cache as caching
from iadd_fast.data.dataset import Data, Split
from iadd_fast.data.pixels import Pixels
from iadd_fast.data.sources import (
    arrays,
    cifar,
    digits,
    folder,
    idx,
    numpy_files,
    torch_dataset,
    ucr,
)
from iadd_fast.data.sources.part import Part, Source, checked_name
from iadd_fast.data.transform import NORMALISATIONS, Transform, fit
from iadd_fast.reading import check_memory
from iadd_fast.seeds import generator

#: Longest side to which images are resized.
LARGEST_SIDE = 8192

_TAKES = (
    "'digits', the path of a folder, .npz, .npy or UCR's .tsv file, an array or tensor with "
    "labels=, or a torch Dataset of (image, label) items"
)
_FOLDERS = (
    "IDX files (train-images-idx3-ubyte...), CIFAR batches (data_batch_1... or train and test), "
    "images.npy and labels.npy, NAME_TRAIN.tsv and NAME_TEST.tsv, or one folder of images per class"
)


def load_data(
    source: Any,
    labels: Any = None,
    *,
    test: Any = None,
    test_labels: Any = None,
    normalise: str = "standard",
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    image_size: int | tuple[int, int] | None = None,
    name: str | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
) -> Data:
    """Read ``source``, split it and normalise it, in memory or, with ``cache``, in a mapped file.

    uint8 pixels are divided by 255; float pixels are taken as they are. Labels become 0, 1, ... in
    the order of their values; ``class_names`` keeps the originals or what the source calls them.

    Args:
        source: one of

            * ``"digits"``: scikit-learn's handwritten digits;
            * a folder of class folders of images (with ``train``, ``val`` and ``test`` above them
              where there are such parts), of IDX files, of CIFAR-10's or CIFAR-100's Python
              batches, or of ``[train_|val_|test_]images.npy`` and ``...labels.npy``;
            * a folder of ``NAME_TRAIN.tsv`` and ``NAME_TEST.tsv`` of the UCR archive (label first),
              or one of the two files where the folder holds more data sets: series (N, 1, L) of one
              length without missing values;
            * an ``.npz`` (images and labels, x and y, or train_images, train_labels, val_...,
              test_...), or an ``.npy`` of images with ``labels``;
            * an array or tensor with ``labels``: (N, C, H, W), (N, H, W, C) or (N, H, W), or as
              floats series (N, C, L) or (N, L). Floats (N, A, B) are series of A channels where
              A <= 16 and B >= 4 A, else images;
            * a ``torch.utils.data.Dataset`` of (image, label) items, read once;
            * ``Data``, which is returned as it is.
        labels: for arrays: one per image. For an ``.npy``: an array or the path of another.
        test: the test part: any of these sources (of one with several parts, its test part). It
            goes before a test part of ``source``.
        test_labels: the same for ``test``.
        normalise: ``"standard"`` (mean and deviation of each channel), ``"zca"`` (eps 0.1) or
            ``"none"``, fitted on the training images, validation included.
        validation_fraction: of the training images, held out class by class, one at least where a
            class has two. 0 holds none out. A validation part of the source is taken instead, or
            joins the training part where this is 0.
        test_fraction: the same for a test part, where there is none. 0: ``Data.test`` is None.
        image_size: height and width (one number: both) to resize images in folders to.
        name: what reports call the data; by default the name of the folder, file or class.
        seed: of the images held out.
        cache: folder on a local disk. The normalised images are written there once, in a file that
            is named by what it holds, and mapped from it, so that data larger than memory can be
            loaded: ``.npy`` files and class folders are read piece by piece (a class folder is
            decoded into an unnamed file there first); the other sources are held in memory while
            they are read. ``Data`` is the same bit for bit. The file takes four bytes a value and
            can be deleted whenever nobody has it open; a damaged one is written anew.

    Raises:
        OSError: ``cache`` cannot be written to.
        FileNotFoundError: a path that does not exist.
        TypeError: a source or argument of another type.
        ValueError: a source or argument that cannot be used; says where, what and what is taken.
    """
    if isinstance(source, Data):
        return source
    arguments.choice("normalise", normalise, NORMALISATIONS)
    seed = arguments.whole("seed", seed, -arguments.LARGEST)
    if name is not None:
        checked_name(arguments.text("name", name), "name: got a text")
    validation_fraction = _check_fraction("validation_fraction", validation_fraction)
    test_fraction = _check_fraction("test_fraction", test_fraction)
    if test is None and test_labels is not None:
        raise ValueError("test_labels: got labels without test=")
    size = _size(image_size)

    place = None if cache is None else arguments.path("cache", cache)
    make = _space if place is None else caching.scratch(place)

    read = _read(source, labels, "source", "labels", size, make)
    if "train" not in read.parts:
        where = next(iter(read.parts.values())).where
        raise ValueError(f"source: found no training part beside {where}; expected one")
    if name is None:
        name = checked_name(read.name, "source: without name= its path gives the data a name")
    training, validation = read.parts["train"], read.parts.get("validation")
    tested = read.parts.get("test")
    if test is not None:
        other = _read(test, test_labels, "test", "test_labels", size, make)
        tested = other.parts.get("test") or other.parts.get("train")
        if tested is None:
            raise ValueError(f"test: found only a validation part ({other.name}); expected images")
    for part in (validation, tested):
        if part is not None:
            _check_alike(training, part)

    values, targets = np.unique(training.labels, return_inverse=True)
    if len(values) < 2:
        raise ValueError(
            f"{training.where}: found {len(training)} images of one class only "
            f"({arguments.shown(_names(values, read)[0])}); expected two classes or more"
        )
    images = Pixels([training.images])
    test_images, test_targets, test_rows = None, None, None
    if tested is not None:
        test_images, test_targets = Pixels([tested.images]), _targets(tested, values)
    elif test_fraction > 0:
        rest, held = _hold_out(targets, test_fraction, seed, "test")
        test_images, test_targets = images.take(held), targets[held]
        test_rows = torch.zeros(len(images), dtype=torch.bool)
        test_rows[torch.from_numpy(held)] = True
        images, targets = images.take(rest), targets[rest]

    held_out = 0
    if validation is not None:
        images = images.joined(validation.images)
        targets = np.concatenate([targets, _targets(validation, values)])
        held_out = len(validation) if validation_fraction > 0 else 0
    fingerprint = images.fingerprint(targets)
    order = np.arange(len(images))
    if validation is None and validation_fraction > 0:
        rest, held = _hold_out(targets, validation_fraction, seed, "validation")
        order, held_out = np.concatenate([rest, held]), len(held)
        images, targets = images.take(order), targets[order]

    parts = [images] if test_images is None else [images, test_images]
    shape = (sum(map(len, parts)), *images.shape[1:])
    pieces = functools.partial(_normalised, parts)
    if place is None:
        transform = fit(normalise, images)
        normalised = _in_memory(shape, pieces(transform))
    else:
        content = {
            "images": fingerprint,
            "order": hashlib.sha256(order.astype("<i8").tobytes()).hexdigest(),
            "test": None if test_images is None else test_images.fingerprint(np.empty(0)),
            "normalise": normalise,
        }
        normalised, transform = caching.cached(
            place, content, shape, functools.partial(fit, normalise, images), pieces
        )
    count = len(images)
    kept = count - held_out
    known = torch.from_numpy(targets)
    return Data(
        name=name,
        train=Split(normalised[:kept], known[:kept]),
        validation=Split(normalised[kept:count], known[kept:]),
        test=None
        if test_targets is None
        else Split(normalised[count:], torch.from_numpy(test_targets)),
        class_names=_names(values, read),
        transform=transform,
        fingerprint=fingerprint,
        test_rows=test_rows,
        split=hashlib.sha256(f"{held_out} ".encode() + order.astype("<i8").tobytes()).hexdigest(),
    )


def _read(
    source: Any,
    labels: Any,
    argument: str,
    labels_argument: str,
    size: tuple[int, int] | None,
    space: Callable[[tuple[int, ...]], NDArray[Any]],
) -> Source:
    if isinstance(source, str | Path):
        arguments.path(argument, source)
        read = _read_path(source, labels, argument, labels_argument, size, space)
    elif isinstance(source, Dataset):
        _check_no_labels(labels, labels_argument, argument)
        read = torch_dataset.read(source, argument)
    elif isinstance(source, Tensor | list) or hasattr(source, "__array__"):
        read = arrays.read(source, labels, argument, labels_argument)
    else:
        raise TypeError(f"{argument}: got a {type(source).__name__}; takes {_TAKES}")
    for part in read.parts.values():
        if size is not None and not read.resized and part.images.shape[2:] != size:
            raise ValueError(
                f"image_size: got {size[0]}x{size[1]} for images of shape {part.images.shape[1:]} "
                f"({part.where}); only images in class folders are resized"
            )
    return read


def _read_path(
    source: str | Path,
    labels: Any,
    argument: str,
    labels_argument: str,
    size: tuple[int, int] | None,
    space: Callable[[tuple[int, ...]], NDArray[Any]],
) -> Source:
    path = Path(source)
    if path.suffix.lower() == ".npy" and not path.is_dir():
        images = numpy_files.load_npy(path)
        if isinstance(labels, str | Path):
            arguments.path(labels_argument, labels)
            own, where = numpy_files.load_npy(Path(labels)), str(labels)
        else:
            own, where = labels, labels_argument
        return Source(path.resolve().stem, arrays.read(images, own, str(path), where).parts)
    _check_no_labels(labels, labels_argument, str(source))
    if source == "digits":
        return digits.read()
    if not path.exists():
        raise FileNotFoundError(f"{argument}: there is no {path}; takes {_TAKES}")
    if path.suffix.lower() == ".npz" and path.is_file():
        return numpy_files.read_npz(path)
    if ucr.recognises(path):
        return ucr.read(path)
    if not path.is_dir():
        raise ValueError(f"{argument}: got the file {path}; takes {_TAKES}")
    if idx.recognises(path):
        return idx.read(path)
    if cifar.recognises(path):
        return cifar.read(path)
    if numpy_files.recognises(path):
        return numpy_files.read_folder(path)
    if folder.recognises(path):
        return folder.read(path, size, space)
    held = sorted(below.name for below in path.iterdir())
    found = ", ".join(held[:5]) + (", ..." if len(held) > 5 else "")
    raise ValueError(f"{path}: found {found or 'an empty folder'}; expected {_FOLDERS}")


def _hold_out(
    targets: NDArray[Any], fraction: float, seed: int, part: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Indices that stay and indices held out, both ascending.

    Of a class of n, round(fraction n) are held out, at least one and at most n - 1.
    """
    chosen = np.zeros(len(targets), bool)
    for label in range(int(targets.max()) + 1):
        members = np.flatnonzero(targets == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        draw = torch.randperm(len(members), generator=generator(seed, "split", part, label))
        chosen[members[draw[:count].numpy()]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _targets(part: Part, values: NDArray[Any]) -> NDArray[Any]:
    """The labels of ``part`` as indices into the training labels ``values``."""
    if part.labels.dtype.kind != values.dtype.kind:
        unknown = np.unique(part.labels)
    else:
        found = np.minimum(np.searchsorted(values, part.labels), len(values) - 1)
        if (values[found] == part.labels).all():
            return found
        unknown = np.setdiff1d(part.labels, values)
    raise ValueError(
        f"{part.where}: found classes {_shown(unknown)}, which have no training images; expected "
        f"{_shown(values)}"
    )


def _names(values: NDArray[Any], source: Source) -> tuple[str, ...]:
    names = source.class_names
    if names is None:
        return tuple(str(value) for value in values)
    if values.min() < 0 or values.max() >= len(names):
        raise ValueError(
            f"{source.parts['train'].where}: found labels from {values.min()} to {values.max()}; "
            f"expected 0 to {len(names) - 1}, for it names {len(names)} classes"
        )
    return tuple(names[int(value)] for value in values)


def _normalised(parts: list[Pixels], transform: Transform) -> Iterator[Tensor]:
    """All images of ``parts``, piece by piece: raw and normalised ones never stand side by side."""
    for part in parts:
        for piece in part.split(part.count):
            yield transform.apply(piece)


def _space(shape: tuple[int, ...]) -> NDArray[Any]:
    check_memory(f"source: images of shape {shape}", math.prod(shape))
    return np.empty(shape, np.uint8)


def _in_memory(shape: tuple[int, ...], pieces: Iterator[Tensor]) -> Tensor:
    images, begin = torch.empty(shape), 0
    for piece in pieces:
        images[begin : begin + len(piece)] = piece
        begin += len(piece)
    return images


def _check_alike(training: Part, part: Part) -> None:
    ours, theirs = Pixels([training.images]), Pixels([part.images])
    if ours.dtype != theirs.dtype or ours.shape[1:] != theirs.shape[1:]:
        raise ValueError(
            f"{part.where}: found {theirs.dtype} images of shape {theirs.shape[1:]}; expected "
            f"{ours.dtype} of shape {ours.shape[1:]}, as in the training part ({training.where})"
        )


def _check_fraction(argument: str, value: float) -> float:
    return arguments.number(argument, value, least=0, below=1)


def _check_no_labels(labels: Any, argument: str, source: str) -> None:
    if labels is not None:
        raise ValueError(f"{argument}: got labels, but {source} brings its own; takes None")


def _size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    try:
        height, width = (arguments.whole("", side, most=LARGEST_SIDE) for side in size)
    except ValueError:
        raise ValueError(
            f"image_size: got {arguments.shown(image_size)}; takes a whole number from 1 to "
            f"{LARGEST_SIDE:,} or (height, width)"
        ) from None
    return height, width


def _shown(values: NDArray[Any]) -> str:
    names = [str(value)[:40] for value in values[:10]]
    return ", ".join(names) + (f" and {len(values) - 10} more" if len(values) > 10 else "")
