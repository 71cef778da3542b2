"""Slices: test samples in groups, by a user's columns or by what the samples themselves show."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.data.sources.arrays import as_text
from iadd_fast.data.sources.numpy_files import load_npy
from iadd_fast.reading import check_text, read_text, regular_file

#: Names of the slices that every data set has; a user's column takes another.
BUILT_IN = ("class", "brightness", "contrast", "energy", "difficulty")
#: Numbers with more distinct values than this are cut into quarters.
DISTINCT = 10
#: Groups of a slice beyond which the rarest are taken together.
MOST_GROUPS = 50
#: Bytes of a table: four columns for ten million samples.
_LARGEST_CSV = 2**29
_QUARTERS = ("lowest", "second", "third", "highest")
_MISSING = "no value"


@dataclass(frozen=True, eq=False)
class Slice:
    """Test samples in groups.

    Attributes:
        name: of the slice. groups: the names of its groups, in the order of their values.
        members: int64 ``[N]``, the group of each test sample.
        note: how the groups were made; empty where each value is a group.
    """

    name: str
    groups: list[str]
    members: NDArray[np.int64]
    note: str = ""


def read_slices(path: str | Path, count: int, test_rows: Tensor | None = None) -> dict[str, Any]:
    """A user's slices out of a file: name -> one value for each test sample.

    A ``.csv`` has a header with the names and one row a sample (an empty field: no value). An
    ``.npy`` holds ``[rows]`` (named after the file) or ``[rows, slices]`` (named after the file and
    the column, from 1). There is one row for each test sample, in the order of the test part; or,
    where the test part was held out of the source, one for each row of the source.

    Args:
        path: of the file. count: test samples.
        test_rows: bool ``[rows of the source]``, true where a row was held out
            (:attr:`iadd_fast.data.Data.test_rows`).

    Raises:
        FileNotFoundError: there is no file at ``path``.
        ValueError: it cannot be read as such, has another number of rows, or as
            :func:`check_slices`.
    """
    path = arguments.path("slices", path)
    try:
        regular_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"slices: no file at {path}") from None
    kind = path.suffix.lower()
    if kind not in (".csv", ".npy"):
        raise ValueError(f"slices: got {path}; takes a .csv with a header, or an .npy")
    columns = _csv_columns(path) if kind == ".csv" else _npy_columns(path)
    rows = len(next(iter(columns.values())))
    if rows == count:
        taken = columns
    elif test_rows is not None and rows == len(test_rows):
        held = torch.nonzero(test_rows.cpu())[:, 0].tolist()
        taken = {name: [values[row] for row in held] for name, values in columns.items()}
    else:
        source = "" if test_rows is None else f" or of the {len(test_rows)} rows of the source"
        raise ValueError(
            f"slices: {path} has {rows} rows; "
            f"takes one for each of the {count} test samples{source}"
        )
    check_slices(taken, count)
    return taken


def check_slices(slices: Mapping[str, Sequence[Any]], count: int) -> None:
    """Raise ``ValueError`` unless :func:`user_slice` makes slices of ``count`` test samples of all.

    The error names the slice: another number of values, an empty name, or one of ``BUILT_IN``,
    texts that are no valid Unicode, numbers beyond all floats, or values that cannot be read.
    """
    for name, values in slices.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(
                f"slices: got the name {arguments.shown(name)}; takes a text that is not empty"
            )
        shown = arguments.shown(name)
        if name in BUILT_IN:
            raise ValueError(
                f"slices: the name {name!r} is taken (as are {', '.join(BUILT_IN)}); rename it"
            )
        try:
            shape = np.shape(values)
        except Exception:  # ragged, or of somebody else's making
            shape = None
        if shape != (count,):
            raise ValueError(
                f"slices: {shown} has values of shape {shape}; takes one for each of the {count} "
                "test samples"
            )
        try:
            made = user_slice(name, values)
            for text in (name, *made.groups):
                check_text(text)
        except Exception as error:  # whatever the values' own conversions raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"slices: {shown} cannot be read: {reason}") from None


def user_slice(name: str, values: Sequence[Any]) -> Slice:
    """A user's column in groups.

    Numbers (also as texts) with more than ``DISTINCT`` values are cut at their quartiles. Of other
    values each is a group; beyond ``MOST_GROUPS`` the rarest are one. None, NaN and empty texts are
    a group of their own.

    Raises:
        ValueError: a whole number beyond all floats.
    """
    given: Any = values
    if isinstance(given, Tensor):  # on any device, in any type, with a gradient or without
        plain = given.tolist()
    else:
        plain = np.asarray(given).tolist() if hasattr(given, "__array__") else list(given)
    numbers = [_number(value) for value in plain]
    missing = np.array([_is_missing(value) for value in plain], dtype=bool)
    if (
        all(number is not None for number, gone in zip(numbers, missing, strict=True) if not gone)
        and not missing.all()
    ):
        array = np.array([math.nan if n is None else n for n in numbers], dtype=np.float64)
        if len(np.unique(array[~missing])) > DISTINCT:
            return quarters(name, array)
        ordered = sorted({float(number) for number in array[~missing]})
        keys: list[Any] = [_MISSING if gone else n for n, gone in zip(array, missing, strict=True)]
        names = {number: f"{number:.10g}" for number in ordered}
        return _slice(name, keys, [*ordered, _MISSING], names)
    texts = [_MISSING if gone else str(v) for v, gone in zip(plain, missing, strict=True)]
    found, counts = np.unique(np.array(texts, dtype=object), return_counts=True)
    if len(found) <= MOST_GROUPS:
        return _slice(name, texts, [t for t in found if t != _MISSING] + [_MISSING], {})
    order = np.argsort(-counts, kind="stable")
    kept = {found[index] for index in order[: MOST_GROUPS - 1]}
    others = f"{len(found) - len(kept)} other values"
    note = f"the {len(kept)} most frequent of {len(found)} values; the others are one group"
    texts = [text if text in kept else others for text in texts]
    return _slice(name, texts, [*sorted(kept), others], {}, note)


def quarters(name: str, values: NDArray[np.float64]) -> Slice:
    """Numbers ``[N]`` cut at their quartiles; a cut that falls on a value leaves it below.

    Quarters that ties leave empty are left out; NaN is a group of its own.
    """
    known = values[~np.isnan(values)]
    cuts = np.quantile(known, [0.25, 0.5, 0.75], method="inverted_cdf")
    places = np.searchsorted(cuts, values, side="left")
    names: dict[Any, str] = {}
    for place, quarter in enumerate(_QUARTERS):
        inside = known[np.searchsorted(cuts, known, side="left") == place]
        if len(inside):
            names[place] = f"{quarter} quarter, {inside.min():.3g} to {inside.max():.3g}"
    keys = [
        _MISSING if math.isnan(value) else int(place)
        for value, place in zip(values, places, strict=True)
    ]
    return _slice(name, keys, [*range(4), _MISSING], names, "cut at its quartiles")


def own_slices(images: Tensor, labels: Tensor, class_names: Sequence[str]) -> list[Slice]:
    """Slices that need no column.

    Class; of images the quarters of brightness (mean of the pixels) and contrast (their standard
    deviation); of series the quarters of energy (mean square).

    Args:
        images: ``[N, C, H, W]`` or ``[N, C, L]`` in data space. labels: int64 ``[N]``.
    """
    keys = labels.tolist()
    result = [_slice("class", keys, range(len(class_names)), dict(enumerate(class_names)))]
    flat = images.flatten(1).double()
    if images.ndim == 3:
        return [*result, quarters("energy", flat.square().mean(1).cpu().numpy())]
    spread = flat.std(1, correction=0)
    return [
        *result,
        quarters("brightness", flat.mean(1).cpu().numpy()),
        quarters("contrast", spread.cpu().numpy()),
    ]


def _slice(
    name: str, keys: Sequence[Any], order: Sequence[Any], names: Mapping[Any, str], note: str = ""
) -> Slice:
    present = set(keys)
    kept = [key for key in order if key in present]
    place = {key: index for index, key in enumerate(kept)}
    members = np.array([place[key] for key in keys], dtype=np.int64)
    return Slice(name, [str(names.get(key, key)) for key in kept], members, note)


def _number(value: Any) -> float | None:
    if isinstance(value, bool | np.bool_):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    except OverflowError:
        raise ValueError(f"got {arguments.shown(value)}, a number beyond all floats") from None
    return None if math.isnan(number) else number


def _is_missing(value: Any) -> bool:
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return True
    return isinstance(value, str) and value.strip().lower() in ("", "nan")


def _csv_columns(path: Path) -> dict[str, Any]:
    text = read_text(path, _LARGEST_CSV).removeprefix("\ufeff")
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"slices: {path} cannot be read as CSV: {error}") from None
    while lines and not lines[-1]:
        lines.pop()
    # an empty line is a value left out where there is one column, and nothing where there are more
    lines = [row or [""] for row in lines if row or len(lines[0]) == 1]
    if len(lines) < 2:
        raise ValueError(f"slices: {path} has {len(lines)} rows; takes a header and values")
    header, *rows = lines
    header = [name.strip() for name in header]
    if len(set(header)) < len(header):
        raise ValueError(f"slices: {path} has two columns of one name; takes different names")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(
                f"slices: {path}, row {number} has {len(row)} values for {len(header)} columns"
            )
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}


def _npy_columns(path: Path) -> dict[str, Any]:
    try:
        values = load_npy(path)
    except ValueError as error:
        raise ValueError(f"slices: {path} cannot be read as an .npy: {error}") from None
    if values.ndim not in (1, 2) or values.size == 0 or values.dtype.kind not in "biufSU":
        raise ValueError(
            f"slices: {path} holds {values.dtype} of shape {values.shape}; takes numbers or texts, "
            "[rows] or [rows, slices]"
        )
    if values.dtype.kind in "SU":
        values = as_text(values, f"slices: {path}")
    if values.ndim == 1:
        return {path.stem: values.tolist()}
    return {
        f"{path.stem} {place + 1}": values[:, place].tolist() for place in range(values.shape[1])
    }
