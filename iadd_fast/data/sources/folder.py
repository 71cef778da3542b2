"""A folder of class folders of images, where there are any with training and test parts above."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from iadd_fast.data.sources.part import Part, PartName, Source
from iadd_fast.reading import check_inside, check_text, regular_file

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
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
    return any(_is_class_folder(path) for path in folder.iterdir())


def read(
    folder: Path,
    image_size: tuple[int, int] | None,
    space: Callable[[tuple[int, ...]], NDArray[Any]],
) -> Source:
    """Every image of ``folder``, labelled by the name of its class folder.

    Images lie in the class folder itself or in the one folder inside it. Where ``folder`` holds a
    folder ``train`` or ``training``, that and ``val``, ``valid`` or ``validation`` and ``test`` or
    ``testing`` beside it are the parts. If all images are gray they get one channel, else all get
    three; 16-bit gray is rounded to 8 bits, transparency is dropped, of several frames the first is
    taken. Links that lead out of ``folder`` are refused.

    Args:
        image_size: (height, width) to resize to, filtered bilinear; the aspect ratio is not kept.
        space: makes the uint8 arrays into which the images are decoded, one after the other.

    Raises:
        FileNotFoundError: an image that is a link to nothing.
        ValueError: a class folder without images, images of different sizes without
            ``image_size``, a file that cannot be decoded (whatever its name, only the formats of
            ``_FORMATS`` are tried), a link that leaves ``folder``, a pipe or a device, or
            a class whose name is no text.
    """
    files = {part: _list_images(path, folder) for part, path in _part_folders(folder).items()}
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
    parts = {
        part: _read_part(entries, gray, size, str(folder), space) for part, entries in files.items()
    }
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
    held = {path.name.lower(): path for path in _subfolders(folder, folder)}
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


def _list_images(folder: Path, root: Path) -> list[tuple[Path, str]]:
    """(file, class) of all images below ``folder``, class after class, in the order of names."""
    classes = _subfolders(folder, root)
    if not classes:
        raise ValueError(
            f"{folder}: found {_contents(folder)}; expected one folder of images per class"
        )
    entries = []
    for path in classes:
        images = _images(path, root)
        if not images:
            inner = [below for below in _subfolders(path, root) if _images(below, root)]
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
            images = _images(inner[0], root)
        entries += [(image, path.name) for image in images]
    return entries


def _read_part(
    entries: list[tuple[Path, str]],
    gray: bool,
    size: tuple[int, int],
    where: str,
    space: Callable[[tuple[int, ...]], NDArray[Any]],
) -> Part:
    images = space((len(entries), 1 if gray else 3, *size))
    for index, (path, _) in enumerate(entries):
        images[index] = _decode(path, gray, size)
    return Part(images, np.array([name for _, name in entries]), where)


def _decode(path: Path, gray: bool, size: tuple[int, int]) -> NDArray[Any]:
    with _opened(path) as image:
        array = pixels(image, gray, str(path))
    if array.shape[1:] == size:
        return array
    plane = Image.fromarray(array[0] if gray else np.moveaxis(array, 0, 2))
    resized = np.asarray(plane.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return resized[None] if gray else np.moveaxis(resized, 2, 0)


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    with _opened(path) as image:
        return image.mode, image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image at ``path``, of one of the known formats and of a size that Pillow calls safe.

    Other formats may be decoded by other programs: Ghostscript runs what an EPS file says.
    """
    try:
        with warnings.catch_warnings():
            # Of damaged tags, of sizes that are refused below, of transparency that is dropped.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                most = Image.MAX_IMAGE_PIXELS
                if most is not None and image.width * image.height > most:
                    raise ValueError(
                        f"it has {_text(image.size)} pixels; takes at most {most:,} "
                        "(PIL.Image.MAX_IMAGE_PIXELS)"
                    )
                yield image
    except UnidentifiedImageError:
        takes = ", ".join(_FORMATS)
        raise ValueError(
            f"{path}: is not an image, or one of another kind; takes {takes}"
        ) from None
    # Pillow's decoders raise almost anything where a file is damaged.
    except Exception as error:
        told = str(error).removeprefix(f"{path}: ") or type(error).__name__
        raise ValueError(f"{path}: cannot be decoded: {told}") from None


def _subfolders(folder: Path, root: Path) -> list[Path]:
    """The folders in ``folder``, links that leave ``root`` refused."""
    found = sorted(path for path in folder.iterdir() if _is_class_folder(path))
    for path in found:
        check_inside(path, root)
        try:
            check_text(path.name)
        except ValueError:
            raise ValueError(
                f"{folder}: holds a folder whose name {os.fsencode(path.name)!r} is no UTF-8 text, "
                "so no class can have it; rename it"
            ) from None
    return found


def _is_class_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__"))


def _images(folder: Path, root: Path) -> list[Path]:
    """The images in ``folder``; what is named like one and is no file of ``root`` is an error."""
    return sorted(
        regular_file(path, root)
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return shown or "an empty folder"


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
