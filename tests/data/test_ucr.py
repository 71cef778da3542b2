"""Series of the UCR archive: the label first, tabs, one line a series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from iadd_fast.data import load_data

TRAIN = [("1", [0.5, -1.25, 3.0]), ("-1", [1e-3, 2.0, -7.5]), ("1", [4.0, 5.0, 6.0])]
TEST = [("-1", [9.0, 8.0, 7.0]), ("1", [0.0, 1.0, 2.0])]
Rows = list[tuple[str, list[float]]]


def write(path: Path, rows: Rows) -> None:
    path.write_text(
        "".join("\t".join([label, *map(repr, values)]) + "\n" for label, values in rows)
    )


def folder(tmp_path: Path, train: Rows = TRAIN, name: str = "Beef") -> Path:
    write(tmp_path / f"{name}_TRAIN.tsv", train)
    write(tmp_path / f"{name}_TEST.tsv", TEST)
    return tmp_path


def values(rows: Rows) -> NDArray[np.float32]:
    return np.array([values for _, values in rows], np.float32)[:, None]


def test_a_folder_gives_its_series(tmp_path: Path) -> None:
    """Breaks if the label is taken for a value, labels -1 and 1 are not put in order, the parts
    change places, or the series get no channel axis."""
    data = load_data(folder(tmp_path), normalise="none", validation_fraction=0)
    assert data.name == "Beef"
    assert data.class_names == ("-1", "1")
    assert data.test is not None
    assert data.train.images.shape == (3, 1, 3)
    np.testing.assert_array_equal(data.train.images, values(TRAIN))
    np.testing.assert_array_equal(data.test.images, values(TEST))
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "2"], ("2", "9", "10")),
        (["1.0000000e+00", "2.0000000e+00", "1.0"], ("1", "2")),
        (["walk", "1", "rest"], ("1", "rest", "walk")),
        (
            ["9007199254740993", "9007199254740992", "5"],
            ("5", "9007199254740992", "9007199254740993"),
        ),
        (["inf", "1", "2"], ("1", "2", "inf")),
    ],
)
def test_labels_of_every_spelling(
    tmp_path: Path, labels: list[str], names: tuple[str, ...]
) -> None:
    """Breaks if numbers are sorted as texts (10 before 2) or rounded, 1 and 1.0 are two classes, or
    names are refused."""
    train = [(label, row) for label, (_, row) in zip(labels, TRAIN, strict=True)]
    write(tmp_path / "Own_TRAIN.tsv", train)
    data = load_data(tmp_path, validation_fraction=0, test_fraction=0)
    assert data.class_names == names


def test_one_file_stands_for_its_data_set(tmp_path: Path) -> None:
    """Breaks if a folder of the whole archive cannot be used, or the test part is another's."""
    other = [(label, [-value for value in row]) for label, row in TRAIN]
    folder(tmp_path, other, "Adiac")
    write(tmp_path / "Adiac_TEST.tsv", other)
    folder(tmp_path)
    data = load_data(tmp_path / "Beef_TRAIN.tsv", normalise="none", validation_fraction=0)
    assert data.name == "Beef"
    assert data.test is not None
    np.testing.assert_array_equal(data.test.images, values(TEST))
    with pytest.raises(ValueError, match=r"2 data sets \(Adiac, Beef, ...\); expected one, or"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1\t2.0\tNaN\n2\t1.0\t2.0\n",
         "1 of 2 series hold missing values (NaN, which the archive also appends"),
        ("1\t2.0\t3.0\n2\t1.0\n", "series 0 has 2 values, series 1 has 1; takes series of one l"),
        ("1\t2.0\t3.0\t\n2\t1.0\t2.0\t\n", "could not convert string to float: ''"),
        ("1\t2.0\tx\n2\t1.0\t2.0\n", "could not convert string to float: 'x'"),
        ("1,2.0,3.0\n2,1.0,2.0\n", "found a line of 1 field; takes a line a series, the label"),
        ("\n", "found no series"),
        ("1\t2.0\tinf\n2\t1.0\t2.0\n", "not finite"),
        ("10000000000000000001\t2.0\n10000000000000000002\t1.0\n5\t1.0\n",
         "got the label 10000000000000000001; takes whole numbers of int64"),
        ("1e300\t2.0\n2e300\t1.0\n5\t1.0\n", "got the label 1e+300; takes whole numbers"),
        ("1\t2.0\na\0\t1.0\na\t1.0\n", "series 1 has a label with a null character"),
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    """Breaks if gaps reach the network as NaN, several labels become one class, or the error does
    not say where and what."""
    path = tmp_path / "Own_TRAIN.tsv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_data(tmp_path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    """Breaks if a compressed or binary file ends in a decoding traceback."""
    (tmp_path / "Own_TRAIN.tsv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="Own_TRAIN.tsv: is no text file"):
        load_data(tmp_path)


def test_a_test_file_alone_is_no_training_data(tmp_path: Path) -> None:
    """Breaks if the test part is taken for training; as test= it is what is meant."""
    write(tmp_path / "Own_TEST.tsv", TEST)
    with pytest.raises(ValueError, match="found no training part beside .*Own_TEST.tsv"):
        load_data(tmp_path)
    data = load_data(values(TRAIN)[:, 0], np.array([1, -1, 1]), test=tmp_path, normalise="none")
    assert data.test is not None
    np.testing.assert_array_equal(data.test.images, values(TEST))
