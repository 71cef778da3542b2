"""Older schema versions of a file, brought up to the newest step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from iadd_fast.artifacts.files import check_schema

#: Metadata of one schema version -> of the next.
Migration = Callable[[dict[str, Any]], dict[str, Any]]


def migrate(
    path: str | Path, metadata: dict[str, Any], kind: str, migrations: Sequence[Migration]
) -> dict[str, Any]:
    """The metadata of a file of ``kind`` in the newest schema version, whichever it was written in.

    Version 1 is the first; ``migrations[k]`` leads from version k + 1 to k + 2, so the newest is
    ``len(migrations) + 1``. The file stays as it is.

    Raises:
        ValueError: it is of another kind, of a newer version, or a step finds what no file of its
            version has.
    """
    newest = len(migrations) + 1
    check_schema(path, metadata, kind, newest)
    version: int = metadata["schema"]
    for step in migrations[version - 1 :]:
        try:
            metadata = step(dict(metadata))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: is no file of schema version {version} ({type(error).__name__}: {error})"
            ) from None
    return {**metadata, "schema": newest}
