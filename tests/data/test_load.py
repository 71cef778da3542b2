"""What load_data does with images once they are read; each source has a file of its own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from iadd_fast.data import Data, Split, load_data


def made_up(
    counts: tuple[int, ...] = (30, 20, 10), shape: tuple[int, ...] = (1, 4, 4), seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """uint8 images in mixed order; every image is unique (its first two values count)."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(len(counts)), counts))
    images = draw.integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    flat = images.reshape(len(labels), -1)
    flat[:, 0], flat[:, 1] = np.arange(len(labels)), seed
    return images, labels


def numbers(split: Split | None) -> list[int]:
    """Which images of made_up() a part of unnormalised data holds."""
    assert split is not None
    return (split.images.flatten(1)[:, 0] * 255).round().long().tolist()


def raw(images: Any, labels: Any, **options: Any) -> Data:
    return load_data(images, labels, **{"normalise": "none", **options})


def test_every_image_is_in_one_part_with_its_own_label() -> None:
    """Breaks if a split loses or repeats an image, or labels do not move with their images."""
    images, labels = made_up()
    data = raw(images, labels)
    parts = [data.train, data.validation, data.test]
    assert sorted(number for part in parts for number in numbers(part)) == list(range(60))
    for part in parts:
        assert part is not None
        assert part.labels.tolist() == labels[numbers(part)].tolist()
        wanted = torch.from_numpy(images[numbers(part)]).float() / 255
        assert torch.equal(part.images, wanted)
        assert numbers(part) == sorted(numbers(part))


def test_parts_are_held_out_class_by_class() -> None:
    """Breaks if the split ignores classes or takes the validation part of all images."""
    data = raw(*made_up())
    assert data.test is not None
    assert data.test.labels.bincount().tolist() == [6, 4, 2]
    assert data.validation.labels.bincount().tolist() == [2, 2, 1]
    assert data.train.labels.bincount().tolist() == [22, 14, 7]


def test_small_classes_give_one_and_keep_one() -> None:
    """Breaks if a small class loses its only image, or gives none though it has two."""
    data = raw(*made_up((20, 2, 1)), test_fraction=0.0, validation_fraction=0.1)
    assert data.validation.labels.tolist().count(1) == 1
    assert data.train.labels.bincount(minlength=3).tolist() == [18, 1, 1]
    data = raw(*made_up((20, 2, 1)), test_fraction=0.0, validation_fraction=0.99)
    assert data.train.labels.bincount(minlength=3).tolist() == [1, 1, 1]


def test_the_seed_chooses_and_nothing_else_does() -> None:
    """Breaks if the split follows a global generator, or the seed is not used."""
    torch.manual_seed(1)
    first = raw(*made_up(), seed=3)
    torch.manual_seed(2)
    again, other = raw(*made_up(), seed=3), raw(*made_up(), seed=4)
    assert numbers(first.test) == numbers(again.test) != numbers(other.test)
    assert numbers(first.validation) == numbers(again.validation)
    # The same test part, whatever is held out for validation.
    assert numbers(raw(*made_up(), seed=3, validation_fraction=0.3).test) == numbers(first.test)


def test_fractions_of_zero_hold_nothing_out() -> None:
    """Breaks if zero still takes one per class, or an empty part has no shape."""
    data = raw(*made_up(), test_fraction=0, validation_fraction=0)
    assert data.test is None
    assert data.validation.images.shape == (0, 1, 4, 4) and len(data.validation) == 0
    assert numbers(data.train) == list(range(60))
    assert data.all_training() is data.train


def test_normalisation_sees_all_training_images_and_no_test_image() -> None:
    """Breaks if test images leak into the statistics, or the validation part is left out."""
    images, labels = made_up(shape=(3, 4, 4))
    tests, test_labels = made_up(shape=(3, 4, 4), seed=1)
    data = load_data(images, labels, test=tests, test_labels=test_labels)
    exact = images.astype(np.float64) / 255
    mean, std = exact.mean((0, 2, 3)), exact.std((0, 2, 3))
    np.testing.assert_allclose(data.transform.tensors()["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(data.transform.tensors()["std"], std, rtol=1e-6)
    assert data.test is not None
    wanted = (tests / 255.0 - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(data.test.images, wanted, atol=2e-6)
    assert torch.equal(data.test.labels, torch.from_numpy(test_labels))


def test_zca_is_fitted_on_unnormalised_pixels() -> None:
    """Breaks if whitening comes after standardising, or on pixels from 0 to 255."""
    images, labels = made_up()
    data = load_data(images, labels, normalise="zca", test_fraction=0)
    flat = images.reshape(60, -1) / 255.0
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    wanted = vectors @ np.diag((values + 0.1) ** -0.5) @ vectors.T
    np.testing.assert_allclose(data.transform.tensors()["matrix"], wanted, atol=1e-6)
    restored = data.transform.invert(data.all_training().images)
    order = (restored.flatten(1)[:, 0] * 255).round().long()
    np.testing.assert_allclose(restored, images[order] / np.float32(255), atol=2e-6)


def test_float_pixels_are_taken_as_they_are() -> None:
    """Breaks if floats are divided by 255, or the user's array is used in place."""
    images, labels = made_up()
    mine = images.astype(np.float32) - 100
    data = raw(mine, labels, test_fraction=0, validation_fraction=0)
    assert torch.equal(data.train.images, torch.from_numpy(mine))
    data.train.images.zero_()
    assert mine.any()


@pytest.mark.parametrize(
    ("shape", "dtype", "wanted"),
    [
        ((8, 8), np.uint8, (1, 8, 8)),
        ((8, 8), np.float32, (1, 8, 8)),
        ((5, 40), np.uint8, (1, 5, 40)),
        ((8, 9, 3), np.uint8, (3, 8, 9)),
        ((8, 9, 1), np.float32, (1, 8, 9)),
        ((3, 8, 9), np.uint8, (3, 8, 9)),
        ((3, 8, 4), np.uint8, (3, 8, 4)),
        ((10, 8, 9), np.float32, (10, 8, 9)),
        ((6, 50), np.float64, (6, 50)),
        ((20, 50), np.float32, (1, 20, 50)),
        ((50,), np.float32, (1, 50)),
    ],
)
def test_axes_are_put_in_order(shape: tuple[int, ...], dtype: Any, wanted: tuple[int, ...]) -> None:
    """Breaks if channels last are not moved, channels first are, or series become pictures."""
    images, labels = made_up((4, 4), shape)
    data = raw(images.astype(dtype), labels, test_fraction=0, validation_fraction=0)
    assert data.sample_shape == wanted
    assert data.train.images.is_contiguous() and data.train.images.dtype == torch.float32
    values = images / np.float32(255) if dtype is np.uint8 else images.astype(np.float32)
    if len(shape) == 3 and shape != wanted:
        values = values.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(data.train.images, values.reshape(-1, *wanted))


@pytest.mark.parametrize(
    ("given", "names", "mapped"),
    [
        ([7, -1, 7, 3], ("-1", "3", "7"), [2, 0, 2, 1]),
        (["dog", "cat", "dog", "ant"], ("ant", "cat", "dog"), [2, 1, 2, 0]),
        (np.array([[1.0], [0.0], [1.0], [0.0]]), ("0", "1"), [1, 0, 1, 0]),
        (torch.tensor([True, False, True, True]), ("0", "1"), [1, 0, 1, 1]),
        (np.array(["b", "a", "b", "a"], object), ("a", "b"), [1, 0, 1, 0]),
        (np.array([b"b", b"a", b"b", b"a"]), ("a", "b"), [1, 0, 1, 0]),
    ],
)
def test_labels_become_indices_and_names_keep_them(
    given: Any, names: tuple[str, ...], mapped: list[int]
) -> None:
    """Breaks if labels are numbered in order of appearance, or the names lose the originals."""
    images = np.arange(16, dtype=np.uint8).reshape(4, 2, 2)
    data = raw(images, given, test_fraction=0, validation_fraction=0)
    assert data.class_names == names and data.num_classes == len(names)
    assert data.train.labels.tolist() == mapped


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (np.array([1e300, 2e300, 1, 0]), "2e+300"),
        (np.array([-(2.0**53), 2, 1, 0]), "-9007199254740992.0"),
        (np.array([2**64 - 1, 2**63, 1, 0], np.uint64), "18446744073709551615"),
        ([2**63 + 1, 2**63 + 2, 5, 6], "9.22"),
        ([2**53 + 1, 2**53, 5.0, 6], "9007199254740992.0"),
    ],
)
def test_labels_that_would_become_one_are_refused(given: Any, shown: str) -> None:
    """Breaks if labels beyond int64 or rounded floats are merged, renamed or put in another
    order; or if those that have a place are refused."""
    images = np.arange(16, dtype=np.uint8).reshape(4, 2, 2)
    options: dict[str, Any] = {"test_fraction": 0, "validation_fraction": 0}
    with pytest.raises(ValueError, match="labels: got the label .*; takes whole numbers") as caught:
        raw(images, given, **options)
    assert shown in str(caught.value)
    most = [-(2**63), 2**63 - 1, 2**53 + 1, 2**53]
    assert raw(images, most, **options).class_names == tuple(map(str, sorted(most)))
    floats = [2.0**53 - 1, 1.0, 2.0**53 - 2, 0.0]
    assert raw(images, floats, **options).train.labels.tolist() == [3, 1, 2, 0]


@pytest.mark.skipif(os.name == "nt", reason="names of files are Unicode there")
@pytest.mark.parametrize("suffix", ["", ".npz"])
def test_a_path_that_is_no_text_gives_no_name(tmp_path: Path, suffix: str) -> None:
    """Breaks if it costs the whole run, whose result cannot be made with such a name."""
    images, labels = made_up()
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9" + suffix.encode()))
    if suffix:
        np.savez(path, images=images, labels=labels)
    else:
        path.mkdir()
        np.save(path / "images.npy", images)
        np.save(path / "labels.npy", labels)
    with pytest.raises(ValueError, match=r"source: without name= .* no valid Unicode, 'caf.udce9'"):
        load_data(path)
    assert load_data(path, name="café").name == "café"


def test_a_name_that_is_no_text_is_refused() -> None:
    """Breaks if it is found when the result of the run is made."""
    with pytest.raises(ValueError, match=r"name: got a text that is no valid Unicode, '.ud800'"):
        load_data(IMAGES, LABELS, name="\ud800")


@pytest.mark.filterwarnings("ignore")  # of torch, which gives quantised and nested tensors up
def test_tensors_that_numpy_has_not_are_refused() -> None:
    """Breaks if they end in an internal error, or bfloat16 is refused with them."""
    images = torch.rand(8, 1, 4, 4)
    for tensor, told in (
        (images.to(torch.float8_e4m3fn), "source: got a torch.float8_e4m3fn tensor of shape (8, 1"),
        (torch.quantize_per_tensor(images, 0.1, 0, torch.quint8), "source: got a quantised tensor"),
        (torch.nested.nested_tensor(list(images)), "source: got a nested tensor; takes a dense"),
    ):
        with pytest.raises(ValueError) as caught:
            load_data(tensor, LABELS)
        assert told in str(caught.value)
    assert torch.equal(
        raw(images.bfloat16(), LABELS, test_fraction=0, validation_fraction=0).train.images,
        images.bfloat16().float(),
    )


def test_a_long_label_is_not_quoted_whole() -> None:
    """Breaks if the message has as many letters as a file puts into a label."""
    for labels, test in ((["x" * 10**5] * 8, ["x"] * 8), (["a", "b"] * 4, ["x" * 10**5] * 8)):
        with pytest.raises(ValueError) as caught:
            load_data(IMAGES, labels, test=IMAGES, test_labels=test)
        assert len(str(caught.value)) < 400


def test_test_labels_are_mapped_as_the_training_labels() -> None:
    """Breaks if the test part numbers its own classes, here without the first."""
    images, _ = made_up((2, 2))
    data = raw(images, [5, 6, 9, 9], test=images[:2], test_labels=[9, 6], validation_fraction=0)
    assert data.test is not None
    assert data.test.labels.tolist() == [2, 1]


def test_the_fingerprint_names_the_training_images() -> None:
    """Breaks if it depends on what happens to images after reading, or on the test part."""
    images, labels = made_up()
    options: dict[str, Any] = {"test": images[:9], "test_labels": labels[:9]}
    prints = {
        load_data(images, labels, **options, **more).fingerprint
        for more in (
            {},
            {"normalise": "zca"},
            {"normalise": "none", "validation_fraction": 0.3},
            {"name": "another", "seed": 5},
        )
    }
    prints.add(load_data(images, labels, test_fraction=0).fingerprint)
    prints.add(load_data(images[:, 0], torch.from_numpy(labels), test_fraction=0).fingerprint)
    assert len(prints) == 1
    (digest,) = prints
    assert len(digest) == 64 and int(digest, 16) >= 0


def test_the_fingerprint_tells_training_images_apart() -> None:
    """Breaks if a pixel, a label, the dtype, the shape or a held-out test part goes unnoticed."""
    images, labels = made_up()
    pixel, label = images.copy(), labels.copy()
    pixel[-1, 0, -1, -1] ^= 1
    label[0] = (label[0] + 1) % 3
    prints = [
        load_data(*pair, test_fraction=fraction).fingerprint
        for *pair, fraction in (
            (images, labels, 0),
            (pixel, labels, 0),
            (images, label, 0),
            (images.astype(np.float32), labels, 0),
            (images.reshape(60, 1, 2, 8), labels, 0),
            (images, labels, 0.2),
        )
    ]
    assert len(set(prints)) == len(prints)


def test_loaded_data_is_returned_as_it_is() -> None:
    """Breaks if a Data is read a second time."""
    data = raw(*made_up())
    assert load_data(data) is data


def test_data_moves_and_keeps_its_order() -> None:
    """Breaks if all_training() loses the labels' order or to() forgets a part."""
    images, labels = made_up()
    data = raw(images, labels)
    everything = data.all_training()
    assert numbers(everything) == numbers(data.train) + numbers(data.validation)
    assert everything.labels.tolist() == labels[numbers(everything)].tolist()
    moved = data.to("meta")
    for part in (moved.train, moved.validation, moved.test):
        assert part is not None and part.images.is_meta and part.labels.is_meta
    assert replace(data, test=None).to("cpu").test is None
    chosen = everything.subset([5, 2])
    assert numbers(chosen) == [numbers(everything)[5], numbers(everything)[2]]
    assert chosen.labels.tolist() == [everything.labels[5], everything.labels[2]]


IMAGES, LABELS = made_up((4, 4))
NAN = IMAGES.astype(np.float32)
NAN[3, 0, 1, 1] = np.nan


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((IMAGES,), {}, "labels: got None"),
        ((IMAGES, LABELS[:5]), {}, "labels: got 5 labels for 8 images"),
        ((IMAGES, np.zeros((8, 3))), {}, "labels: got labels of shape (8, 3)"),
        ((IMAGES, LABELS + 0.5), {}, "labels: got labels of dtype float64 that are not whole"),
        ((IMAGES, [None] * 8), {}, "labels: got labels of dtype object"),
        ((IMAGES, [4] * 8), {}, "source: found 8 images of one class only ('4')"),
        ((NAN, LABELS), {}, "source: 1 of 8 images hold values that are not finite numbers in "
         "float32, the first is image 3"),
        ((np.full((8, 2, 2), 1e300), LABELS), {}, "8 of 8 images hold values"),
        ((IMAGES.astype(np.int64), LABELS), {}, "source: got images of dtype int64; takes uint8"),
        ((IMAGES.reshape(8, 16), LABELS), {}, "source: got images of dtype uint8 and shape (8, 16"),
        ((IMAGES[:0], LABELS[:0]), {}, "shape (0, 1, 4, 4)"),
        (([[1, 2], [3]], [0, 1]), {}, "source: cannot be read as one array"),
        ((IMAGES, LABELS), {"normalise": "whiten"}, "normalise: got 'whiten'; takes one of"),
        ((IMAGES, LABELS), {"validation_fraction": 1.0}, "validation_fraction: got 1.0; takes"),
        ((IMAGES, LABELS), {"test_fraction": -0.1}, "test_fraction: got -0.1; takes"),
        ((IMAGES, LABELS), {"test_labels": LABELS}, "test_labels: got labels without test="),
        ((IMAGES, LABELS), {"test": IMAGES}, "test_labels: got None"),
        ((IMAGES, LABELS), {"test": IMAGES, "test_labels": LABELS + 1},
         "test: found classes 2, which have no training images; expected 0, 1"),
        ((IMAGES, LABELS), {"test": IMAGES, "test_labels": ["a", "b"] * 4}, "found classes a, b"),
        ((IMAGES, LABELS), {"test": IMAGES[..., :3], "test_labels": LABELS},
         "test: found uint8 images of shape (1, 4, 3); expected uint8 of shape (1, 4, 4)"),
        ((IMAGES, LABELS), {"test": IMAGES / 255, "test_labels": LABELS}, "test: found float32"),
        ((IMAGES, LABELS), {"image_size": 8}, "image_size: got 8x8 for images of shape (1, 4, 4)"),
        ((IMAGES, LABELS), {"image_size": (8, 0)}, "image_size: got (8, 0); takes"),
        (("digits", LABELS), {}, "labels: got labels, but digits brings its own"),
    ],
)  # fmt: skip
def test_bad_input_gives_one_clear_error(
    arguments: tuple[Any, ...], options: dict[str, Any], text: str
) -> None:
    """Breaks if bad input passes, or the error does not say where, what and what is taken."""
    with pytest.raises(ValueError) as caught:
        load_data(*arguments, **options)
    assert text in str(caught.value)


def test_sources_of_other_types_and_missing_paths_are_refused(tmp_path: Any) -> None:
    """Breaks if a wrong source ends in an AttributeError, or a missing path in a strange reader."""
    with pytest.raises(TypeError, match="source: got a dict; takes 'digits', the path"):
        load_data({"images": IMAGES})
    with pytest.raises(FileNotFoundError, match=f"source: there is no {tmp_path / 'mnsit'}; takes"):
        load_data(tmp_path / "mnsit")
    with pytest.raises(ValueError, match=f"{tmp_path}: found an empty folder; expected IDX files"):
        load_data(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=f"{tmp_path}: found notes.txt; expected IDX files"):
        load_data(str(tmp_path))
    with pytest.raises(ValueError, match=f"source: got the file {tmp_path / 'notes.txt'}; takes"):
        load_data(tmp_path / "notes.txt")


def test_a_split_checks_its_labels() -> None:
    """Breaks if images and labels of different counts make a part."""
    with pytest.raises(ValueError, match="labels: got torch.int64 of shape .3,. for images"):
        Split(torch.zeros(2, 1, 2, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="torch.float32"):
        Split(torch.zeros(2, 1, 2, 2), torch.zeros(2))
