"""A distilled set for other tools: a folder of images, a Parquet file for Hugging Face datasets."""

from __future__ import annotations

import io
import json
import re
import secrets
import shutil
import unicodedata
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.artifacts.files import METADATA_KEY, to_json, write_atomically, write_json
from iadd_fast.data.transform import Standardise

if TYPE_CHECKING:
    from iadd_fast.artifacts.distilled_set import DistilledSet

METADATA = "metadata.json"
_LONGEST_NAME = 40


def export_folder(
    distilled: DistilledSet, path: str | Path, pixel_range: tuple[float, float] = (0.0, 1.0)
) -> None:
    """Write the samples, in the space of the original data, into the folder ``path``.

    Images of 1 or 3 channels become ``INDEX_CLASS/NUMBER.png``, 8 bits a channel: the folders sort
    in the order of the classes, so that torchvision's ``ImageFolder`` and ``load_data`` give the
    set's own label numbers (where every class has a sample). The folder's name is made of the
    class's number and what of its name is a plain letter, digit or dash; ``metadata.json`` holds
    the real names. Series and images of other channels become ``images.npy`` (float32, exact) and
    ``labels.npy``, which ``load_data`` reads.

    ``metadata.json`` also says what the pictures cannot: learning rate, transform, student, soft
    labels (a folder is then the most probable class), ``pixel_range`` and which share of the values
    lay outside it and was clipped.

    Args:
        path: made; it must not exist, or be an empty folder.
        pixel_range: the values that become 0 and 255. uint8 data is in 0 to 1.

    Raises:
        FileExistsError: there is something at ``path``.
        ValueError: ``pixel_range`` is no range.
    """
    path = arguments.path("path", path)
    _check_range(pixel_range)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path}: exists already; takes a new or empty folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    temporary.mkdir()
    try:
        _fill_folder(temporary, distilled, pixel_range)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def export_parquet(
    distilled: DistilledSet, path: str | Path, pixel_range: tuple[float, float] = (0.0, 1.0)
) -> None:
    """Write the set as one Parquet file that ``datasets.load_dataset("parquet", ...)`` decodes.

    One row a sample:

    * ``image``: the sample in the space of the original data as a PNG of 8 bits, an ``Image``
      there; for series ``series``, for images that are neither gray nor RGB ``pixels``, nested
      lists of float32;
    * ``label``: a ``ClassLabel`` with the class names; with soft labels the most probable class;
    * ``soft_label``: the probabilities (only where the labels are soft);
    * ``tensor``: the sample as networks are trained on it, float32 and exact.

    The file's key ``iadd_fast`` holds the learning rate and the rest of the set's description as
    JSON (without importance weights and ZCA matrices), ``pixel_range`` and the share of values that
    PNG clipped.

    Args:
        path: replaced where it exists.
        pixel_range: the values that become 0 and 255. uint8 data is in 0 to 1.

    Raises:
        ValueError: pyarrow is not installed (``pip install 'iadd_fast[parquet]'``), two classes
            have one name, or ``pixel_range`` is no range.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError("to_parquet: needs pyarrow: pip install 'iadd_fast[parquet]'") from None
    path = arguments.path("path", path)
    _check_range(pixel_range)
    names = list(distilled.class_names)
    if len(set(names)) < len(names):
        raise ValueError(f"class_names: got {names}; Parquet's ClassLabel takes each name once")
    pixels = distilled.pixels().float()
    columns: dict[str, Any] = {}
    features: dict[str, Any] = {}
    if _is_picture(pixels):
        images = [{"bytes": _png(image, pixel_range), "path": None} for image in pixels]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns["image"] = pa.array(images, kind)
        features["image"] = {"_type": "Image"}
    else:
        name = "series" if pixels.ndim == 3 else "pixels"
        columns[name], features[name] = _nested(pixels)
    columns["label"] = pa.array(_hard(distilled.labels).tolist(), pa.int64())
    features["label"] = {"names": names, "_type": "ClassLabel"}
    if distilled.labels.is_floating_point():
        columns["soft_label"], features["soft_label"] = _nested(distilled.labels)
    columns["tensor"], features["tensor"] = _nested(distilled.images)
    description = _description(distilled, pixels, pixel_range)
    table = pa.table(columns).replace_schema_metadata(
        {
            "huggingface": json.dumps({"info": {"features": features}}),
            METADATA_KEY: to_json(description, f"{path}: metadata", strict=True),
        }
    )
    write_atomically(path, partial(pq.write_table, table))


def _fill_folder(folder: Path, distilled: DistilledSet, pixel_range: tuple[float, float]) -> None:
    pixels = distilled.pixels().float()
    labels = _hard(distilled.labels)
    description = _description(distilled, pixels, pixel_range)
    files = None
    if _is_picture(pixels):
        folders = _folder_names(distilled.class_names)
        description["folders"] = folders
        files = []
        digits = len(str(len(pixels) - 1))
        for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            file = folder / folders[label] / f"{number:0{digits}d}.png"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(_png(image, pixel_range))
            files.append(f"{file.parent.name}/{file.name}")
        description["files"] = files
    else:
        np.save(folder / "images.npy", pixels.numpy())
        np.save(folder / "labels.npy", labels.numpy())
    if distilled.labels.is_floating_point():
        description["soft_labels"] = distilled.labels.tolist()
    write_json(folder / METADATA, description)


def _folder_names(class_names: tuple[str, ...]) -> list[str]:
    """Names that sort in the order of the classes and mean nothing to any file system."""
    digits = len(str(len(class_names) - 1))
    return [
        f"{label:0{digits}d}_{_safe(name)}".rstrip("_") for label, name in enumerate(class_names)
    ]


def _safe(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9-]+", "_", plain)[:_LONGEST_NAME].strip("_")


def _description(
    distilled: DistilledSet, pixels: Tensor, pixel_range: tuple[float, float]
) -> dict[str, Any]:
    """What of the set is not in its samples and labels; JSON-able."""
    transform = distilled.transform
    described: dict[str, Any] = {"kind": transform.kind, **transform.metadata()}
    if isinstance(transform, Standardise):
        described |= {name: tensor.tolist() for name, tensor in transform.tensors().items()}
    description: dict[str, Any] = {
        "format": "iadd_fast export",
        "class_names": list(distilled.class_names),
        "learning_rate": distilled.lr,
        "transform": described,
        "labels": "soft" if distilled.labels.is_floating_point() else "hard",
        "student": distilled.student_spec,
        "augment": distilled.augment,
        "seed": distilled.seed,
        "data_name": distilled.data_name,
        "data_fingerprint": distilled.data_fingerprint,
        "versions": distilled.versions,
        "config": distilled.config,
        "summary": distilled.summary,
    }
    if _is_picture(pixels):
        low, high = pixel_range
        outside = (pixels < low) | (pixels > high)
        description["pixel_range"] = [float(low), float(high)]
        description["share_of_values_clipped"] = float(outside.double().mean())
    return description


def _is_picture(pixels: Tensor) -> bool:
    return pixels.ndim == 4 and pixels.shape[1] in (1, 3)


def _png(image: Tensor, pixel_range: tuple[float, float]) -> bytes:
    low, high = pixel_range
    values = ((image - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(values[0] if len(values) == 1 else np.moveaxis(values, 0, 2))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _hard(labels: Tensor) -> Tensor:
    return labels.argmax(1) if labels.is_floating_point() else labels


def _nested(values: Tensor) -> tuple[Any, dict[str, Any]]:
    """``values`` ``[N, ...]`` as an Arrow column of nested lists, and its Hugging Face feature."""
    import pyarrow as pa

    values = values.float().contiguous()
    column: Any = pa.array(values.reshape(-1).numpy(), pa.float32())
    for axis in range(values.ndim - 1, 0, -1):
        size = values.shape[axis]
        offsets = np.arange(0, len(column) + 1, size, dtype=np.int32)
        column = pa.ListArray.from_arrays(offsets, column)
    feature: dict[str, Any] = {"dtype": "float32", "_type": "Value"}
    for _ in range(values.ndim - 1):
        feature = {"feature": feature, "_type": "Sequence"}
    return column, feature


def _check_range(pixel_range: tuple[float, float]) -> None:
    arguments.instance("pixel_range", pixel_range, tuple | list, "(low, high)")
    numbers = [arguments.number("pixel_range", bound) for bound in pixel_range]
    if len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(
            f"pixel_range: got {arguments.shown(pixel_range)}; takes (low, high) with low below "
            "high"
        )
