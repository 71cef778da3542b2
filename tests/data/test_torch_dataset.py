from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from iadd_fast.data import Data, load_data

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = [2, 0, 1, 2, 0, 1]


class Listed(Dataset[Any]):
    def __init__(self, items: list[Any], classes: Any = None) -> None:
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(PIXELS, LABELS, strict=True))


class Endless(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return PIXELS[0], 0


def load(dataset: Dataset[Any], **options: Any) -> Data:
    fixed = {"normalise": "none", "validation_fraction": 0, "test_fraction": 0}
    return load_data(dataset, **{**fixed, **options})


def tensors() -> torch.Tensor:
    """As torchvision's ToTensor gives them."""
    return torch.from_numpy(PIXELS.transpose(0, 3, 1, 2)).float() / 255


@pytest.mark.parametrize(
    "dataset",
    [
        Listed(
            [(Image.fromarray(image), label) for image, label in zip(PIXELS, LABELS, strict=True)]
        ),
        Listed([[image, np.int64(label)] for image, label in zip(PIXELS, LABELS, strict=True)]),
        Listed(list(zip(tensors(), torch.tensor(LABELS), strict=True))),
        TensorDataset(tensors(), torch.tensor(LABELS)),
        Subset(TensorDataset(tensors(), torch.tensor(LABELS)), range(6)),
        Streamed(),
    ],
    ids=["pillow", "arrays", "tensors", "TensorDataset", "Subset", "iterable"],
)
def test_items_of_every_form_give_the_same_data(dataset: Dataset[Any]) -> None:
    """Breaks if a form of image is scaled differently, or its axes are not put in order."""
    data = load(dataset)
    assert torch.equal(data.train.images, tensors())
    assert data.train.labels.tolist() == LABELS
    assert data.name == type(dataset).__name__


def test_gray_pillow_images_get_one_channel() -> None:
    """Breaks for torchvision's MNIST without transform."""
    images = [Image.fromarray(image[..., 0]) for image in PIXELS]
    data = load(Listed(list(zip(images, LABELS, strict=True))))
    np.testing.assert_array_equal(data.train.images[:, 0], PIXELS[..., 0] / np.float32(255))


def test_class_names_come_from_the_dataset_where_they_fit() -> None:
    """Breaks if torchvision's `classes` is ignored, or names are given to the wrong labels."""
    items = list(zip(PIXELS, LABELS, strict=True))
    assert load(Listed(items, ["shirt", "bag", "boot"])).class_names == ("shirt", "bag", "boot")
    assert load(Listed(items, ["shirt", "bag"])).class_names == ("0", "1", "2")
    assert load(Listed(items, 3)).class_names == ("0", "1", "2")
    without = [item for item in items if item[1] != 0]
    assert load(Listed(without, ["shirt", "bag", "boot"])).class_names == ("bag", "boot")


def test_a_dataset_as_test_part() -> None:
    """Breaks if test= is read as an array and asks for labels."""
    data = load(Streamed(), test=Listed([(PIXELS[3], 1)]))
    assert data.test is not None and data.test.labels.tolist() == [1]
    assert torch.equal(data.test.images[0], tensors()[3])


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        (Listed([]), "source: got a Listed without items"),
        (Listed([(PIXELS[0], 0), PIXELS[1]]), "source: item 1 is a ndarray; takes pairs"),
        (Listed([{"image": PIXELS[0]}]), "source: item 0 is a dict; takes pairs (image, label)"),
        (Listed([("a.png", 0)]), "source: item 0 holds a str; takes a tensor, array or Pillow"),
        (Listed([(PIXELS[0], 0), (PIXELS[1][:3], 1)]),
         "source: item 1 is uint8 of shape (3, 4, 3), item 0 is uint8 of shape (5, 4, 3)"),
        (Listed([(image, 1) for image in PIXELS]), "6 images of one class only ('1')"),
        (Listed([(image, torch.eye(3)[0]) for image in PIXELS]), "labels of shape (6, 3)"),
        (TensorDataset(tensors()), "source: got a TensorDataset of 1 tensors; takes two"),
        (Endless(), "source: got a Endless without a length"),
    ],
)  # fmt: skip
def test_bad_datasets_are_refused(dataset: Dataset[Any], text: str) -> None:
    """Breaks if a wrong item ends in an error that does not say which one it is."""
    with pytest.raises(ValueError) as caught:
        load(dataset)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ((tensors()[1].to_sparse(), 0), "source: item 1: got a torch.float32 tensor"),
        ((tensors()[1].to("meta"), 0), "source: item 1: got a torch.float32 tensor"),
        ((tensors()[1].to(torch.float8_e4m3fn), 0), "source: item 1: got a torch.float8_e4m3fn"),
        ((tensors()[1], torch.tensor(0, device="meta")), "source: the label of item 1: got"),
    ],
    ids=["sparse", "meta", "float8", "label"],
)
def test_an_item_that_numpy_has_not_is_named(changed: Any, told: str) -> None:
    """Breaks if it ends in an internal error, or one that does not say which item it is."""
    items = list(zip(tensors(), LABELS, strict=True))
    items[1] = changed
    with pytest.raises(ValueError) as caught:
        load(Listed(items))
    assert told in str(caught.value)


def test_items_of_bfloat16_are_read() -> None:
    """Breaks if they are refused, though the same images in one tensor are taken."""
    items = list(zip(tensors().bfloat16(), LABELS, strict=True))
    assert torch.equal(load(Listed(items)).train.images, tensors().bfloat16().float())


def test_a_class_whose_name_is_no_text_is_refused() -> None:
    """Breaks if it costs the whole run, whose result cannot be made with such a name."""
    items = list(zip(PIXELS, LABELS, strict=True))
    with pytest.raises(ValueError, match=r"source: its classes hold .* Unicode, '.udce9'"):
        load(Listed(items, ["shirt", "\udce9", "boot"]))


def test_labels_beside_a_dataset_are_refused() -> None:
    """Breaks if labels= is ignored in silence."""
    with pytest.raises(ValueError, match="labels: got labels, but source brings its own"):
        load(Streamed(), labels=LABELS)
