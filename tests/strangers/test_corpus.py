"""Hostile files: each is read or refused by name, quickly, in little memory, and runs nothing."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.strangers import building, torch_cases
from tests.strangers.building import TERA
from tests.strangers.cases import PRECIOUS
from tests.strangers.corpus import CASES
from tests.strangers.worker import Outcome, outcomes

#: Bytes that a reader may grow by; the files claim up to 10**24. One of text has 10 MB, four bytes
#: a letter in Python.
MOST = 3 * 2**25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strangers")


@pytest.fixture(scope="module")
def found(folder: Path) -> Mapping[str, Outcome]:
    """Read in a process of their own, which dies or hangs in the place of this one."""
    return {outcome.name: outcome for outcome in outcomes(folder, list(CASES))}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_read_or_refused(found: Mapping[str, Outcome], name: str) -> None:
    """Breaks if a file is believed, allocates what it claims, hangs or kills the reader, or raises
    an error that is another's, or that does not say which file it is."""
    case, outcome = CASES[name], found[name]
    assert outcome.error != "hangs or dies"
    assert outcome.grown < MOST, f"grew by {outcome.grown / 2**20:.0f} MiB: {outcome.text}"
    if not case.text:
        assert not outcome.error, outcome.text
        return
    assert case.error in outcome.bases, f"{outcome.error}: {outcome.text}"
    assert case.text in outcome.text
    assert len(outcome.text) < 1200
    if case.reader != "evaluation":  # gets what its caller has read
        own = "".join(c if c.isalnum() else "-" for c in name)
        assert own in outcome.text, f"names no file: {outcome.text}"


def test_nothing_ran_and_nothing_else_was_written(
    folder: Path, found: Mapping[str, Outcome]
) -> None:
    """Breaks if code in a file runs, or a run's files are written through a stranger's link."""
    assert len(found) == len(CASES)
    assert not list(folder.rglob("canary"))
    precious = list(folder.rglob("precious"))
    assert len(precious) == 3
    assert {path.read_text() for path in precious} == {PRECIOUS}


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """Breaks if the corpus has become harmless, so that the other tests show nothing."""
    canary = tmp_path / "canary"
    pickle.loads(building.running(canary))
    assert canary.is_dir()
    file = tmp_path / "tensor.pt"
    file.write_bytes(building.torch_pickle(building.tensor((TERA,), (0,))))
    assert torch.load(file, weights_only=True).nbytes == 4 * TERA
    file.write_bytes(torch_cases.tensors(lambda: 1)(tmp_path).read_bytes())
    assert torch.load(file, weights_only=True) == 1
    bomb = building.npz({"images": building.npy((4,), data=bytes(2**24))})
    assert len(bomb) < 2**15
    array = tmp_path / "array.npy"
    array.write_bytes(building.npy((2**40,)))
    with pytest.raises((MemoryError, ValueError)):
        np.load(array)
