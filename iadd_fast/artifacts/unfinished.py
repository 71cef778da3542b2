"""A network in training, kept in a folder of its own until it is finished."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from iadd_fast.artifacts.checkpoint import (
    CHECKPOINT,
    newest_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)
from iadd_fast.artifacts.files import refuse_link, remove_leftovers


def save_unfinished(
    folder: Path, key: Mapping[str, Any], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Keep how far the network of ``key`` is; what was kept before it stays beside it.

    Args:
        folder: its own. key: what is trained and how (JSON-able).
        tensors, metadata: what :func:`load_unfinished` gives back.
    """
    refuse_link(folder)
    save_checkpoint(folder, tensors, {"key": dict(key), **metadata})


def load_unfinished(
    folder: Path, key: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and metadata of the newest whole checkpoint of the network of ``key``, or None.

    One of another network counts as none, and so does one that cannot be read: a network is lost,
    not the job. Nobody else may work in ``folder``.

    Raises:
        ValueError: ``folder`` is a link.

    Warns:
        UserWarning: a damaged checkpoint was passed over.
    """
    if not refuse_link(folder).is_dir():
        return None
    try:
        found, reasons = newest_checkpoint(folder)
    except ValueError as error:
        found, reasons = None, [str(error)]
    if found is None and reasons:
        warnings.warn(f"{'; '.join(reasons)}; this network begins anew", stacklevel=2)
    if found is not None and found[1].get("key") == key:
        return found
    remove_unfinished(folder)
    return None


def remove_unfinished(folder: Path) -> None:
    """Remove what was kept of a network; whatever else is in its folder stays."""
    if folder.is_symlink() or not folder.is_dir():
        return
    remove_leftovers(folder / CHECKPOINT)
    remove_checkpoints(folder)
    try:
        folder.rmdir()
    except OSError:
        return
