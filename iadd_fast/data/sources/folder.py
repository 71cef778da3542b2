"""A folder of class folders of images, where there are any with training and test parts above."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iadd_fast.data.sources.part import Part, PartName, Source

_SUFFIXES = {
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
_PARTS: dict[PartName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_GRAY = ("1", "L", "LA", "La")
_DEEP_GRAY = ("I;16", "I;16L", "I;16B", "I;16N")
_UNSUPPORTED = ("I", "F")


def recognises(folder: Path) -> bool:
    """Whether ``folder`` holds folders."""
    return bool(_subfolders(folder))


def read(folder: Path, image_size: tuple[int, int] | None = None) -> Source:
    """Every image of ``folder``, labelled by the name of its class folder.

    Images lie in the class folder itself or in the one folder inside it. Where ``folder`` holds a
    folder ``train`` or ``training``, that and ``val``, ``valid`` or ``validation`` and ``test`` or
    ``testing`` beside it are the parts. If all images are gray they get one channel, else all get
    three; 16-bit gray is rounded to 8 bits, transparency is dropped.

    Args:
        image_size: (height, width) to resize to, filtered bilinear; the aspect ratio is not kept.

    Raises:
        ValueError: a class folder without images, images of different sizes without
            ``image_size``, or a file that cannot be decoded.
    """
    files = {part: _list_images(path) for part, path in _part_folders(folder).items()}
    gray = True
    first: tuple[Path, tuple[int, int]] | None = None
    for path, _ in (entry for entries in files.values() for entry in entries):
        mode, size = _header(path)
        gray = gray and mode in _GRAY + _DEEP_GRAY
        if first is None:
            first = (path, size)
        elif image_size is None and size != first[1]:
            raise ValueError(
                f"{folder}: images differ in size: {first[0]} is {_text(first[1])}, {path} is "
                f"{_text(size)} (width x height); expected one size, or image_size= to resize to"
            )
    assert first is not None  # _list_images gives at least one
    width, height = first[1]
    size = image_size or (height, width)
    parts = {part: _read_part(entries, gray, size, str(folder)) for part, entries in files.items()}
    return Source(folder.resolve().name, parts, resized=image_size is not None)


def pixels(image: Image.Image, gray: bool, where: str) -> NDArray[Any]:
    """``image`` as uint8 ``[C, H, W]`` with one channel or three."""
    if image.mode in _UNSUPPORTED:
        raise ValueError(f"{where}: holds 32-bit pixels (mode {image.mode}); takes 8 or 16 bits")
    if image.mode in _DEEP_GRAY:
        # convert("L") would clip at 255.
        deep = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    array = np.asarray(image.convert("L" if gray else "RGB"))
    return array[None] if gray else np.moveaxis(array, 2, 0)


def is_gray(image: Image.Image) -> bool:
    """Whether ``image`` has no colours by its mode."""
    return image.mode in _GRAY + _DEEP_GRAY


def _part_folders(folder: Path) -> dict[PartName, Path]:
    held = {path.name.lower(): path for path in _subfolders(folder)}
    found: dict[PartName, Path] = {}
    for part, names in _PARTS.items():
        matching = [held[name] for name in names if name in held]
        if len(matching) > 1:
            raise ValueError(
                f"{folder}: found {matching[0].name} and {matching[1].name}; expected "
                f"one {part} part"
            )
        if matching:
            found[part] = matching[0]
    return found if "train" in found else {"train": folder}


def _list_images(folder: Path) -> list[tuple[Path, str]]:
    """(file, class) of all images below ``folder``, class after class, in the order of names."""
    classes = _subfolders(folder)
    if not classes:
        raise ValueError(
            f"{folder}: found {_contents(folder)}; expected one folder of images per class"
        )
    entries = []
    for path in classes:
        images = _images(path)
        if not images:
            inner = [below for below in _subfolders(path) if _images(below)]
            if len(inner) != 1:
                found = (
                    f"images in {', '.join(below.name for below in inner)}"
                    if inner
                    else _contents(path)
                )
                raise ValueError(
                    f"{path}: found {found}; expected the images of one class, of type "
                    f"{', '.join(sorted(_SUFFIXES))}"
                )
            images = _images(inner[0])
        entries += [(image, path.name) for image in images]
    return entries


def _read_part(
    entries: list[tuple[Path, str]], gray: bool, size: tuple[int, int], where: str
) -> Part:
    images = np.empty((len(entries), 1 if gray else 3, *size), np.uint8)
    for index, (path, _) in enumerate(entries):
        images[index] = _decode(path, gray, size)
    return Part(images, np.array([name for _, name in entries]), where)


def _decode(path: Path, gray: bool, size: tuple[int, int]) -> NDArray[Any]:
    try:
        with Image.open(path) as image:
            array = pixels(image, gray, str(path))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be decoded: {error}") from None
    if array.shape[1:] == size:
        return array
    plane = Image.fromarray(array[0] if gray else np.moveaxis(array, 0, 2))
    resized = np.asarray(plane.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return resized[None] if gray else np.moveaxis(resized, 2, 0)


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    try:
        with Image.open(path) as image:
            return image.mode, image.size
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: is not an image: {error}") from None


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))
    )


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return shown or "an empty folder"


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
