"""Changed files of every format: a few dozen each; ``bench/strangers.py`` reads thousands."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.strangers.fuzz import FORMATS, cases, mutated, values

COUNT = 24


@pytest.mark.parametrize("name", FORMATS)
def test_a_changed_file_is_read_right_or_refused(tmp_path: Path, name: str) -> None:
    """Breaks if a damaged file raises anything but ValueError or OSError, is not named, or if one
    with a checksum is read as something it never was."""
    told = cases(name, COUNT, tmp_path)
    assert told["read"] + told["refused"] == COUNT
    assert told["refused"] > 0


@pytest.mark.parametrize("name", ["distilled set, unsealed", "expert, unsealed", "manifest"])
def test_any_value_anywhere_in_the_metadata(tmp_path: Path, name: str) -> None:
    """Breaks if a null, a huge number, a list or a text where none belongs raises another error."""
    told = values(name, tmp_path)
    assert told["refused"] > 100


def test_a_change_changes() -> None:
    """Breaks if the fuzzer reads the same file again and again."""
    content = bytes(range(200))
    changed = {mutated(content, random.Random(seed)) for seed in range(100)}
    assert len(changed - {content}) > 90
