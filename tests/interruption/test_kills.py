"""A few of the kills of ``bench/kills.py``, on a smaller set."""

from __future__ import annotations

import dataclasses
import random

import pytest

import iadd_fast
from bench.kills import Kills


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Kills:
    data = iadd_fast.load_data("digits")
    small = dataclasses.replace(
        data, train=data.train.subset(range(300)), validation=data.validation.subset(range(30))
    )
    return Kills(tmp_path_factory.mktemp("kills"), small)


def test_random_instants(kills: Kills) -> None:
    """Breaks when anything of experts or distillation is not in a checkpoint, or is written twice.

    The instants differ from machine to machine; what must come out does not.
    """
    _, differences = kills.at_random(4, random.Random(0))
    assert differences == []


def test_every_step_of_writing(kills: Kills) -> None:
    """Breaks when a file is renamed before it is synced whole, or the last checkpoint moves away
    before the next one is there."""
    count, differences = kills.at_every_write()
    assert differences == []
    assert count > 10
