"""Slices: read from files, cut into groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iadd_fast.audit.slices import check_slices, own_slices, quarters, read_slices, user_slice
from iadd_fast.data import load_data

HELD = torch.tensor([False, True, False, True, True])


def test_csv_by_test_sample_or_by_row_of_the_source(tmp_path: Path) -> None:
    """Breaks when rows are taken at other places than those held out, or columns are mixed up."""
    path = tmp_path / "s.csv"
    path.write_text('site,age\n"north, upper",1\nsouth,2\nwest,\n')
    assert read_slices(path, 3) == {
        "site": ["north, upper", "south", "west"],
        "age": ["1", "2", ""],
    }
    path.write_text("site,age\n" + "".join(f"s{row},{row}\n" for row in range(5)))
    assert read_slices(path, 3, HELD) == {"site": ["s1", "s3", "s4"], "age": ["1", "3", "4"]}


def test_one_column_with_values_left_out(tmp_path: Path) -> None:
    """Breaks when an empty line, which is a missing value there, shifts all that follow."""
    path = tmp_path / "s.csv"
    path.write_text("site\na\n\nb\n\n")
    assert read_slices(path, 3) == {"site": ["a", "", "b"]}


def test_npy(tmp_path: Path) -> None:
    """Breaks when rows are taken for columns, or held-out rows are not taken."""
    np.save(tmp_path / "ages.npy", np.arange(10.0).reshape(5, 2))
    found = read_slices(tmp_path / "ages.npy", 3, HELD)
    assert found == {"ages 1": [2.0, 6.0, 8.0], "ages 2": [3.0, 7.0, 9.0]}
    np.save(tmp_path / "one.npy", np.array(["a", "b", "a"]))
    assert read_slices(tmp_path / "one.npy", 3) == {"one": ["a", "b", "a"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", "a\n1\n2\n", "2 rows; takes one for each of the 3 test samples or of the 5 rows"),
        ("s.csv", "a,a\n1,2\n1,2\n1,2\n", "two columns of one name"),
        ("s.csv", "a,b\n1,2\n1\n1,2\n", "row 2 has 1 values for 2 columns"),
        ("s.csv", "a\n", "1 rows; takes a header and values"),
        ("s.csv", "class\n1\n2\n3\n", "'class' is taken"),
        ("s.csv", " ,b\n1,2\n1,2\n1,2\n", "takes a text that is not empty"),
        ("s.txt", "a\n1\n2\n3\n", r"takes a \.csv with a header, or an \.npy"),
        ("s.npy", "no array", r"cannot be read as an \.npy"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    """Breaks when a file that does not fit is taken, or fails in a way that names no file."""
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_slices(path, 3, HELD)


def test_missing_file_and_pickles(tmp_path: Path) -> None:
    """Breaks when a pickle is loaded, or an error does not name the argument."""
    with pytest.raises(FileNotFoundError, match="slices: no file"):
        read_slices(tmp_path / "none.csv", 3)
    path: Any = 5
    with pytest.raises(TypeError, match="slices: got 5; takes a path"):
        read_slices(path, 3)
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        read_slices(tmp_path / "o.npy", 1)


def test_wrong_length_names_the_slice() -> None:
    """Breaks when a column of another length is cut or repeated."""
    with pytest.raises(ValueError, match=r"'age' has values of shape \(2,\)"):
        check_slices({"age": [1, 2]}, 3)


class Unreadable:
    """Has a shape, and no values that anybody could read."""

    shape = (3,)

    def __array__(self, *_: object, **__: object) -> object:
        raise RuntimeError("no\nvalues")


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("age", [10**400, 1, 2], "'age' cannot be read: got 1000.*, a number beyond all floats"),
        ("age", torch.ones(3).to_sparse(), "'age' cannot be read: "),
        ("age", torch.ones(3, device="meta"), "'age' cannot be read: "),
        ("age", Unreadable(), "'age' cannot be read: no values$"),
        ("site", ["\ud800", "b", "c"], "'site' cannot be read: the text .* no valid Unicode"),
        ("\ud800", ["a", "b", "c"], "cannot be read: the text .* no valid Unicode"),
        ("x" * 10**5, [1, 2], "has values of shape"),
    ],
)
def test_values_that_cannot_be_cut_are_found_by_the_check(
    name: str, values: Any, told: str
) -> None:
    """Breaks if the check passes what fails once all networks are trained."""
    with pytest.raises(ValueError, match=f"^slices: .*{told}") as caught:
        check_slices({name: values}, 3)
    assert len(str(caught.value)) < 400


def test_tensors_of_every_type_are_cut() -> None:
    """Breaks if a tensor with a gradient, or of a type that NumPy has not, is no column."""
    values = torch.tensor([1.0, 2.0, 1.0])
    columns: list[Any] = [values, values.clone().requires_grad_(), values.bfloat16()]
    for tensor in columns:
        check_slices({"age": tensor}, 3)
        made = user_slice("age", tensor)
        assert (made.groups, made.members.tolist()) == (["1", "2"], [0, 1, 0])


def test_numbers_are_cut_at_their_quartiles() -> None:
    """Breaks when values land in a neighbouring quarter, or numbers as texts are categories."""
    values = [str(value) for value in np.random.default_rng(0).permutation(40)]
    found = user_slice("age", [*values, "", None, float("nan")])
    assert found.groups == [
        "lowest quarter, 0 to 9",
        "second quarter, 10 to 19",
        "third quarter, 20 to 29",
        "highest quarter, 30 to 39",
        "no value",
    ]
    assert found.members.tolist() == [int(value) // 10 for value in values] + [4, 4, 4]
    assert found.note


def test_few_numbers_and_texts_are_groups_of_their_own() -> None:
    """Breaks when 0 and 1 are cut into quarters, or groups are in no order."""
    found = user_slice("flag", [1, 0, 0.0, 1, np.int64(0)])
    assert (found.groups, found.members.tolist()) == (["0", "1"], [1, 0, 0, 1, 0])
    found = user_slice("site", ["b", "a", "", "b"])
    assert (found.groups, found.members.tolist()) == (["a", "b", "no value"], [1, 0, 2, 1])
    found = user_slice("yes", [True, False, True])
    assert found.groups == ["False", "True"]


def test_rare_texts_are_taken_together() -> None:
    """Breaks when an identity for each sample makes as many groups as samples."""
    values = ["common"] * 5 + [f"id {number}" for number in range(100)]
    found = user_slice("patient", values)
    assert len(found.groups) == 50
    others = found.groups[-1]
    assert others == "52 other values"
    assert int((found.members == 49).sum()) == 52
    assert "49 most frequent of 101" in found.note


def test_ties_leave_empty_quarters_out() -> None:
    """Breaks when a group without members is listed, or members point past the groups."""
    found = quarters("b", np.array([0.0] * 30 + [1.0, 2.0]))
    assert found.groups == ["lowest quarter, 0 to 0", "highest quarter, 1 to 2"]
    assert found.members.tolist() == [0] * 30 + [1, 1]


def test_own_slices_of_images_and_series() -> None:
    """Breaks when brightness and contrast are swapped, or series have neither."""
    ramp = torch.linspace(0.1, 0.8, 8)
    images = ramp[:, None, None, None] * torch.ones(8, 1, 2, 2)
    images[:, 0, 0, 0] += torch.tensor([0.4, 0.0] * 4)
    labels = torch.tensor([0, 2, 0, 2, 0, 2, 0, 2])
    by_class, brightness, contrast = own_slices(images, labels, ("a", "b", "c"))
    assert (by_class.groups, by_class.members.tolist()) == (["a", "c"], [0, 1] * 4)
    means = images.flatten(1).mean(1)
    assert [int(brightness.members[i]) for i in means.argsort()] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert set(contrast.members[1::2]) != set(contrast.members[::2])
    series = torch.randn(8, 1, 5)
    assert [one.name for one in own_slices(series, labels, ("a", "b", "c"))] == ["class", "energy"]


def test_test_rows_are_the_rows_held_out() -> None:
    """Breaks when the mask is in another order than the test part, or there where none was held."""
    images = np.arange(60, dtype=np.float32).reshape(60, 1, 1, 1) + np.zeros(
        (1, 1, 4, 4), np.float32
    )
    labels = np.arange(60) % 3
    data = load_data(images, labels, normalise="none", test_fraction=0.3)
    assert data.test is not None and data.test_rows is not None
    rows = torch.nonzero(data.test_rows)[:, 0]
    assert data.test.images[:, 0, 0, 0].tolist() == rows.tolist()
    assert len(data.test_rows) == 60
    own = load_data(images, labels, test=images, test_labels=labels)
    assert own.test_rows is None
    assert load_data(images, labels, test_fraction=0).test_rows is None
