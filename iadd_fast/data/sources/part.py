"""What every reader gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from numpy.typing import NDArray

from iadd_fast.reading import check_text

PartName = Literal["train", "validation", "test"]


@dataclass(frozen=True, eq=False)
class Part:
    """Images and labels of one part, checked, before scaling, splitting and normalising.

    Attributes:
        images: uint8 (0 to 255) or floats ``[N, C, H, W]`` or ``[N, C, L]``, finite in float32, as
            which they are read piece by piece; perhaps a view or mapped from a file.
        labels: ``[N]``, int64 or text.
        where: the path or argument the images came from, for errors.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    where: str

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[Any]) -> Part:
        return replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True, eq=False)
class Source:
    """All parts that a source holds.

    Attributes:
        name: what to call the data where the user does not say.
        parts: at least one part.
        class_names: the names of the labels 0, 1, ... where the source knows them.
        resized: the images were brought to the size that the user named.
    """

    name: str
    parts: Mapping[PartName, Part]
    class_names: tuple[str, ...] | None = None
    resized: bool = False


def checked_name(name: str, where: str) -> str:
    """``name``, of a data set or class, where every file can hold it.

    Raises:
        ValueError: it is no valid Unicode; says ``where`` it is from.
    """
    try:
        check_text(name)
    except ValueError:
        raise ValueError(f"{where} that is no valid Unicode, {name[:40]!a}") from None
    return name
