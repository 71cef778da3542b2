"""All randomness of the package: independent streams derived from one seed by name.

A stream is named by a path such as ``("iteration", 12, "augment", 3)``. Nothing depends on a
global generator, so any step of any run can be replayed alone, in any order, by any worker.
"""

from __future__ import annotations

import hashlib

import torch

from iadd_fast import arguments


def derive(seed: int, *path: int | str) -> int:
    """A 63-bit seed for the stream ``path`` below ``seed``: the BLAKE2b hash of both.

    Equal arguments give equal seeds on every machine; different paths give unrelated ones. ``1``
    and ``"1"`` are different path elements.

    Raises:
        ValueError: ``seed`` is no whole number.
    """
    seed = arguments.whole("seed", seed, -arguments.LARGEST)
    text = "/".join([str(seed), *(f"{type(part).__name__}:{_escaped(part)}" for part in path)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *path: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` seeded with ``derive(seed, *path)``."""
    return torch.Generator(device).manual_seed(derive(seed, *path))


def _escaped(part: int | str) -> str:
    """So that no element of a path reads as two."""
    return str(part).replace("\\", "\\\\").replace("/", "\\/")
