"""Series of the UCR archive (Dau et al., 2018): ``NAME_TRAIN.tsv`` and ``NAME_TEST.tsv``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iadd_fast.data.sources.arrays import as_part, check_label
from iadd_fast.data.sources.part import Part, PartName, Source
from iadd_fast.reading import regular_file

_NAME = re.compile(r"(?P<name>.+)_(?P<part>TRAIN|TEST)\.tsv", re.IGNORECASE)
_PARTS: dict[str, PartName] = {"train": "train", "test": "test"}
#: Bytes of a line, about a million values.
_LONGEST_LINE = 2**24
#: An array of texts gives each as much room as the longest.
_LONGEST_LABEL = 255
_TAKES = "a line a series, the label first, then the values, separated by tabs"


def recognises(path: Path) -> bool:
    """Whether ``path`` is a file, or a folder with a file, named as UCR's are."""
    if path.is_dir():
        return any(_NAME.fullmatch(below.name) for below in path.iterdir())
    return _NAME.fullmatch(path.name) is not None


def read(path: Path) -> Source:
    """The parts of one data set as float32 series ``[N, 1, L]``, values as they are in the file.

    Args:
        path: the folder of ``NAME_TRAIN.tsv`` and ``NAME_TEST.tsv``, or one of the two where the
            folder holds other data sets as well. Of both, only the training file has to exist.

    Raises:
        ValueError: a folder of several data sets, a file that is not of this format, series of
            different lengths or with missing values (the archive fills both with NaN), or labels
            that are whole numbers beyond int64 or, as floats, beyond 2**53.
    """
    folder = path if path.is_dir() else path.parent
    files: dict[str, dict[PartName, Path]] = {}
    for below in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(below.name):
            files.setdefault(match["name"], {})[_PARTS[match["part"].lower()]] = below
    if path.is_dir():
        if len(files) > 1:
            raise ValueError(
                f"{path}: found {len(files)} data sets ({', '.join(sorted(files)[:3])}, ...); "
                f"expected one, or the path of its file, such as {folder / min(files)}_TRAIN.tsv"
            )
        (name,) = files
    else:
        match = _NAME.fullmatch(path.name)
        assert match is not None  # as recognises() says
        name = match["name"]
    return Source(name, {part: _read_part(file, folder) for part, file in files[name].items()})


def _read_part(path: Path, within: Path) -> Part:
    rows: list[NDArray[Any]] = []
    labels: list[str] = []
    for line in _lines(path, within):
        label, *fields = line.split("\t")
        if not fields:
            raise ValueError(f"{path}: found a line of 1 field; takes {_TAKES}")
        if rows and len(fields) != len(rows[0]):
            raise ValueError(
                f"{path}: series 0 has {len(rows[0])} values, series {len(rows)} has "
                f"{len(fields)}; takes series of one length: cut, pad or resample them first"
            )
        if len(label) > _LONGEST_LABEL:
            raise ValueError(
                f"{path}: series {len(rows)} has a label of {len(label):,} letters; takes at most "
                f"{_LONGEST_LABEL}"
            )
        if "\0" in label:  # which an array of texts loses at their ends
            raise ValueError(f"{path}: series {len(rows)} has a label with a null character")
        try:
            rows.append(np.array(fields, dtype=np.float64))
        except ValueError as error:
            raise ValueError(f"{path}: {str(error)[:200]}; takes {_TAKES}") from None
        labels.append(label)
    if not rows:
        raise ValueError(f"{path}: found no series; takes {_TAKES}")
    values = np.stack(rows)
    missing = np.isnan(values).any(1)
    if missing.any():
        raise ValueError(
            f"{path}: {int(missing.sum())} of {len(values)} series hold missing values (NaN, which "
            "the archive also appends to series that are shorter), the first is series "
            f"{int(missing.argmax())}; takes series of one length without gaps: cut, fill or "
            "resample them first"
        )
    return as_part(values, _labels(labels, str(path)), str(path), str(path))


def _lines(path: Path, within: Path) -> Iterator[str]:
    """The lines that are not empty, of a bounded length each."""
    with regular_file(path, within).open("rb") as file:
        while line := file.readline(_LONGEST_LINE + 1):
            if len(line) > _LONGEST_LINE:
                raise ValueError(f"{path}: a line has more than {_LONGEST_LINE:,} bytes")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}: is no text file ({error.reason}); takes {_TAKES}"
                ) from None
            if text.strip():
                yield text.rstrip("\r\n")


def _labels(texts: list[str], where: str) -> NDArray[Any]:
    """Whole numbers where all read as such (``1``, ``-1``, ``1.0``), else the texts."""
    texts = [text.strip() for text in texts]
    try:
        numbers = [_whole(text) for text in texts]
    except ValueError:
        return np.array(texts)
    for number in numbers:
        check_label(number, where)
    return np.array(numbers, dtype=np.int64)


def _whole(text: str) -> int | float:
    """The whole number of ``text``, a float where it is written as one; ``ValueError``: none."""
    try:
        return int(text)  # not by way of a float, which rounds
    except ValueError:
        number = float(text)
    if not number.is_integer():
        raise ValueError(f"{text!r} is no whole number")
    return number
