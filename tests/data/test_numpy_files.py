from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from iadd_fast.data import Data, load_data


def arrays(seed: int = 0, count: int = 6) -> tuple[NDArray[Any], NDArray[Any]]:
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, 5), dtype=np.uint8)
    return images, (np.arange(count) % 2 * 3)[:, None]


def save(path: Path, held: dict[str, Any]) -> None:
    np.savez_compressed(path, allow_pickle=True, **held)


def load(path: Path, **options: Any) -> Data:
    fixed = {"normalise": "none", "validation_fraction": 0, "test_fraction": 0}
    return load_data(path, **{**fixed, **options})


def check(data: Data, seed: int = 0) -> None:
    images, labels = arrays(seed)
    np.testing.assert_array_equal(data.train.images[:, 0], images / np.float32(255))
    np.testing.assert_array_equal(data.train.labels, labels[:, 0] // 3)
    assert data.class_names == ("0", "3")


@pytest.mark.parametrize("keys", ["images labels", "x y", "train_images train_labels",
                                  "x_train y_train"])  # fmt: skip
def test_npz_under_each_pair_of_names(tmp_path: Path, keys: str) -> None:
    """Breaks if a usual pair of names is not known, or labels of shape (N, 1) are refused."""
    path = tmp_path / "set.npz"
    save(path, dict(zip(keys.split(), arrays(), strict=True)))
    data = load(path)
    check(data)
    assert data.test is None and data.name == "set"


def test_npz_of_medmnist_with_all_its_parts(tmp_path: Path) -> None:
    """Breaks if the validation part is split anew, or parts are swapped."""
    path = tmp_path / "pneumonia.npz"
    held: dict[str, Any] = {}
    for seed, part in enumerate(("train", "val", "test")):
        held[f"{part}_images"], held[f"{part}_labels"] = arrays(seed)
    save(path, held)
    data = load(path, validation_fraction=0.1)
    check(data)
    assert data.test is not None
    for split, seed in ((data.validation, 1), (data.test, 2)):
        np.testing.assert_array_equal(split.images[:, 0], arrays(seed)[0] / np.float32(255))
    assert len(load(path, validation_fraction=0).train) == 12


def test_npy_pairs_in_a_folder(tmp_path: Path) -> None:
    """Breaks if images.npy is not found, or train_ and test_ are not told apart."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    for what, array in zip(("images", "labels"), arrays(), strict=True):
        np.save(one / f"{what}.npy", array)
        np.save(two / f"train_{what}.npy", array)
    for what, array in zip(("images", "labels"), arrays(1), strict=True):
        np.save(two / f"test_{what}.npy", array)
    check(load(one))
    data = load(two)
    check(data)
    assert data.test is not None
    np.testing.assert_array_equal(data.test.images[:, 0], arrays(1)[0] / np.float32(255))


def test_the_test_part_of_another_source(tmp_path: Path) -> None:
    """Breaks if test= takes the training part of a source that has both, or loses to source's own.

    Without a test part its only part is taken.
    """
    held = {"x_train": arrays(0)[0], "y_train": arrays(0)[1]}
    save(tmp_path / "one.npz", {**held, "x_test": arrays(1)[0], "y_test": arrays(1)[1]})
    save(tmp_path / "two.npz", {**held, "x_test": arrays(2)[0], "y_test": arrays(2)[1]})
    save(tmp_path / "three.npz", {"x": arrays(3)[0], "y": arrays(3)[1]})
    for name, seed in (("two", 2), ("three", 3)):
        data = load(tmp_path / "one.npz", test=tmp_path / f"{name}.npz")
        check(data)
        assert data.test is not None
        np.testing.assert_array_equal(data.test.images[:, 0], arrays(seed)[0] / np.float32(255))


def test_one_npy_with_labels(tmp_path: Path) -> None:
    """Breaks if labels= takes only an array or only a path; the file must stay as it is."""
    images, labels = arrays()
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "y.npy", labels)
    before = (tmp_path / "x.npy").read_bytes()
    for given in (tmp_path / "y.npy", str(tmp_path / "y.npy"), labels):
        data = load(tmp_path / "x.npy", labels=given)
        check(data)
        assert data.name == "x"
    data.train.images.zero_()
    assert (tmp_path / "x.npy").read_bytes() == before


@pytest.mark.parametrize(
    ("held", "text"),
    [
        ({"pixels": 1}, "set.npz: found pixels; expected train: train_images + train_labels or"),
        ({"images": arrays()[0]}, "set.npz: found images; expected images and labels together"),
        ({"images": arrays()[0], "labels": arrays(0, 5)[1]},
         "set.npz: labels: got 5 labels for 6 images"),
        ({"test_images": arrays()[0], "test_labels": arrays()[1]}, "found no training part beside"),
        ({"images": np.array([{}]), "labels": arrays()[1]}, "set.npz: images cannot be read"),
    ],
)  # fmt: skip
def test_other_archives_are_refused(tmp_path: Path, held: dict[str, Any], text: str) -> None:
    """Breaks if missing keys give a KeyError, or Python objects are unpickled."""
    path = tmp_path / "set.npz"
    save(path, held)
    with pytest.raises(ValueError) as caught:
        load(path)
    assert text in str(caught.value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Breaks if half a file gives an error that does not name it."""
    path = tmp_path / "set.npz"
    np.savez(path, images=arrays()[0], labels=arrays()[1])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="set.npz: cannot be read as a .npz archive"):
        load(path)
    with path.open("wb") as file:
        np.save(file, arrays()[0])
    with pytest.raises(ValueError, match="set.npz: holds one array; expected a .npz archive"):
        load(path)
    images, labels = tmp_path / "images.npy", tmp_path / "labels.npy"
    with pytest.raises(FileNotFoundError, match="images.npy: no such file"):
        load(images, labels=labels)
    np.save(images, arrays()[0])
    with pytest.raises(FileNotFoundError, match="labels.npy: no such file"):
        load(images, labels=labels)
    with pytest.raises(ValueError, match="images.npy: labels: got None|labels: got None"):
        load(images)
    with pytest.raises(ValueError, match="expected images and labels together"):
        load(tmp_path)
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(ValueError, match="images.npy: cannot be read as a .npy array"):
        load(images, labels=arrays()[1])


def test_arrays_beyond_the_memory_that_is_left_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a MemoryError comes out, which does not name the file."""
    path = tmp_path / "set.npz"
    np.savez(path, images=arrays()[0], labels=arrays()[1])

    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("iadd_fast.data.sources.numpy_files.np.empty", full)
    with pytest.raises(ValueError, match="set.npz: images cannot be read: MemoryError"):
        load(path)
