"""Series of the UCR archive (Dau et al., 2018): ``NAME_TRAIN.tsv`` and ``NAME_TEST.tsv``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iadd_fast.data.sources.arrays import as_part
from iadd_fast.data.sources.part import Part, PartName, Source

_NAME = re.compile(r"(?P<name>.+)_(?P<part>TRAIN|TEST)\.tsv", re.IGNORECASE)
_PARTS: dict[str, PartName] = {"train": "train", "test": "test"}
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
        ValueError: a folder of several data sets, a file that is not of this format, or series of
            different lengths or with missing values (the archive fills both with NaN).
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
    return Source(name, {part: _read_part(file) for part, file in files[name].items()})


def _read_part(path: Path) -> Part:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text file ({error.reason}); takes {_TAKES}") from None
    rows = [line.split("\t") for line in lines if line.strip()]
    if not rows or len(rows[0]) < 2:
        found = "no series" if not rows else f"a line of {len(rows[0])} field"
        raise ValueError(f"{path}: found {found}; takes {_TAKES}")
    length = len(rows[0]) - 1
    for number, row in enumerate(rows):
        if len(row) - 1 != length:
            raise ValueError(
                f"{path}: series 0 has {length} values, series {number} has {len(row) - 1}; takes "
                "series of one length: cut, pad or resample them first"
            )
    values = _numbers(path, [row[1:] for row in rows])
    missing = np.isnan(values).any(1)
    if missing.any():
        raise ValueError(
            f"{path}: {int(missing.sum())} of {len(values)} series hold missing values (NaN, which "
            "the archive also appends to series that are shorter), the first is series "
            f"{int(missing.argmax())}; takes series of one length without gaps: cut, fill or "
            "resample them first"
        )
    return as_part(values, _labels([row[0] for row in rows]), str(path), str(path))


def _numbers(path: Path, rows: list[list[str]]) -> NDArray[Any]:
    try:
        return np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; takes {_TAKES}") from None


def _labels(texts: list[str]) -> NDArray[Any]:
    """Whole numbers where all read as such (``1``, ``-1``, ``1.0``), else the texts."""
    texts = [text.strip() for text in texts]
    try:
        numbers = np.array(texts, dtype=np.float64)
    except ValueError:
        return np.array(texts)
    whole = bool(np.isfinite(numbers).all() and (numbers % 1 == 0).all())
    return numbers.astype(np.int64) if whole else np.array(texts)
