from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from iadd_fast.data import Data, load_data


def picture(seed: int, shape: tuple[int, ...] = (6, 4, 3)) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(folder: Path, shape: tuple[int, ...] = (6, 4, 3), seed: int = 0) -> None:
    """Two classes: cat with a.png and b.png, dog with a.png."""
    for index, name in enumerate(("cat/a.png", "cat/b.png", "dog/a.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed + index, shape)).save(path)


def load(folder: Path, **options: Any) -> Data:
    fixed = {"normalise": "none", "validation_fraction": 0, "test_fraction": 0}
    return load_data(folder, **{**fixed, **options})


def test_class_folders_give_images_and_names(tmp_path: Path) -> None:
    """Breaks if colours or axes change places, or files that are no images are taken."""
    write(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("")
    (tmp_path / "readme.md").write_text("")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog") and data.name == tmp_path.name
    assert data.train.labels.tolist() == [0, 0, 1]
    wanted = np.stack([picture(seed) for seed in range(3)]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(data.train.images, wanted / np.float32(255))


def test_parts_above_the_class_folders(tmp_path: Path) -> None:
    """Breaks if train and test become classes, or the validation part joins the training part."""
    for part, seed in (("Training", 0), ("val", 10), ("test", 20)):
        write(tmp_path / part, seed=seed)
    data = load(tmp_path, validation_fraction=0.1)
    assert data.test is not None
    for split, seed in ((data.train, 0), (data.validation, 10), (data.test, 20)):
        assert split.labels.tolist() == [0, 0, 1]
        wanted = picture(seed).transpose(2, 0, 1) / np.float32(255)
        np.testing.assert_array_equal(split.images[0], wanted)
    joined = load(tmp_path, validation_fraction=0)
    assert len(joined.validation) == 0
    np.testing.assert_array_equal(joined.train.images[3], data.validation.images[0])
    assert joined.fingerprint == data.fingerprint


def test_gray_images_get_one_channel_also_from_16_bits(tmp_path: Path) -> None:
    """Breaks if X-rays become three equal channels, or 16-bit pixels are clipped at 255."""
    write(tmp_path, (6, 4))
    deep = np.arange(24, dtype=np.uint16).reshape(6, 4) * 2849
    Image.fromarray(deep).save(tmp_path / "dog" / "b.png")
    data = load(tmp_path)
    assert data.sample_shape == (1, 6, 4)
    np.testing.assert_array_equal(data.train.images[0, 0], picture(0, (6, 4)) / np.float32(255))
    np.testing.assert_allclose(data.train.images[3, 0], deep / 65535, atol=0.51 / 255)


def test_one_coloured_image_makes_all_coloured(tmp_path: Path) -> None:
    """Breaks if the first image, a gray one, decides for all, or palettes are taken raw."""
    write(tmp_path, (6, 4))
    red = Image.new("RGB", (4, 6), (255, 0, 0))
    red.quantize().save(tmp_path / "dog" / "b.png")
    data = load(tmp_path)
    assert data.sample_shape == (3, 6, 4)
    assert data.train.images[3].amax((1, 2)).tolist() == [1, 0, 0]
    np.testing.assert_array_equal(data.train.images[0, 0], data.train.images[0, 2])


def test_images_of_one_class_may_lie_one_folder_deeper(tmp_path: Path) -> None:
    """Breaks for TinyImageNet (class/images/*.JPEG); masks beside them must not become images."""
    write(tmp_path)
    inner = tmp_path / "cat" / "images"
    inner.mkdir()
    for path in (tmp_path / "cat").glob("*.png"):
        path.rename(inner / path.name)
    (tmp_path / "cat" / "boxes").mkdir()
    assert load(tmp_path).train.labels.tolist() == [0, 0, 1]
    (tmp_path / "cat" / "masks").mkdir()
    (inner / "b.png").rename(tmp_path / "cat" / "masks" / "b.png")
    with pytest.raises(ValueError, match="cat: found images in images, masks; expected the images"):
        load(tmp_path)


def test_image_size_resizes(tmp_path: Path) -> None:
    """Breaks if height and width change places, or shrinking skips pixels instead of averaging."""
    checks = np.indices((8, 8)).sum(0) % 2 * 255
    for name, shape in (("a", (8, 8)), ("b", (16, 8))):
        (tmp_path / name).mkdir()
        tiled = np.tile(checks, (2, 1))[: shape[0], : shape[1]].astype(np.uint8)
        Image.fromarray(tiled).save(tmp_path / name / "x.png")
    data = load(tmp_path, image_size=(4, 2))
    assert data.sample_shape == (1, 4, 2)
    assert (data.train.images - 0.5).abs().max() < 0.1
    assert load(tmp_path, image_size=4).sample_shape == (1, 4, 4)


def test_images_of_different_sizes_ask_for_a_size(tmp_path: Path) -> None:
    """Breaks if the error does not name both files and the way out."""
    write(tmp_path)
    Image.new("RGB", (5, 7)).save(tmp_path / "dog" / "b.png")
    with pytest.raises(ValueError) as caught:
        load(tmp_path)
    text = str(caught.value)
    assert f"{tmp_path / 'cat' / 'a.png'} is 4x6" in text
    assert f"{tmp_path / 'dog' / 'b.png'} is 5x7" in text
    assert "image_size=" in text


def test_a_test_folder_of_its_own(tmp_path: Path) -> None:
    """Breaks if test= does not take what source takes, or numbers its classes itself."""
    write(tmp_path / "one")
    (tmp_path / "two" / "dog").mkdir(parents=True)
    Image.fromarray(picture(9)).save(tmp_path / "two" / "dog" / "x.png")
    data = load(tmp_path / "one", test=tmp_path / "two")
    assert data.test is not None and data.test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("change", "place", "text"),
    [
        ("empty class", "bird", "found an empty folder; expected the images of one class"),
        ("only text", "bird", "found notes.txt; expected the images of one class, of type .bmp"),
        ("broken", "cat/c.png", "is not an image"),
        ("truncated", "cat/c.png", "cannot be decoded"),
        ("float", "cat/c.tiff", "holds 32-bit pixels (mode F); takes 8 or 16 bits"),
        ("flat test part", "test", "found 1.png; expected one folder of images per class"),
        ("two tests", "", "found test and testing; expected one test part"),
        (
            "unknown class",
            "",
            "found classes bird, which have no training images; expected cat, dog",
        ),
    ],
)
def test_bad_folders_are_refused(tmp_path: Path, change: str, place: str, text: str) -> None:
    """Breaks if a class is left out in silence, or the error does not name the place."""
    root = tmp_path
    if "test" in change or change == "unknown class":
        root = tmp_path / "train"
    write(root)
    target = tmp_path / place
    if change == "empty class":
        target.mkdir()
    elif change == "only text":
        target.mkdir()
        (target / "notes.txt").write_text("")
    elif change == "broken":
        target.write_bytes(b"no image")
    elif change == "truncated":
        whole = (tmp_path / "cat" / "a.png").read_bytes()
        target.write_bytes(whole[: len(whole) // 2])
    elif change == "float":
        Image.fromarray(np.zeros((6, 4), np.float32)).save(target)
    elif change == "flat test part":
        target.mkdir()
        Image.fromarray(picture(0)).save(target / "1.png")
    elif change == "two tests":
        write(tmp_path / "test")
        write(tmp_path / "testing")
    else:
        write(tmp_path / "test")
        (tmp_path / "test" / "dog").rename(tmp_path / "test" / "bird")
    with pytest.raises(ValueError) as caught:
        load(tmp_path)
    assert text in str(caught.value)
    assert str(target) in str(caught.value)
