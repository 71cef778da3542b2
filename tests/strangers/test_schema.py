"""Files of older schema versions, as older versions of the package wrote them."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.distilled_set import MIGRATIONS, SCHEMA
from iadd_fast.artifacts.migration import migrate
from tests.strangers import building

#: A whole file that iadd_fast 0.1.0.dev0 wrote before schema 2 and before checksums, packed.
WRITTEN_AS_1 = """
eNqlUktu2zAQddEb5AQG14RhyZaQeJFkVSBnsAx1Yo4kIiIlkFSDwBCQI/QIPUJXXTa9Ry7TISk7KZosikoaiPN5bz6cx4+z
8BxYWSp0IMBBWbLNgUkQoqzAOrZhh4LdSS0KtpkXTEjrZNuimFt0BeNksvsGFXh34tXW+ONykWZe27dgbalBofXmLVlgwomu
LtguMLhBoHal7XHvoyijR8SMqu1jvNT94CILJUrp250yRPbU6/dSuOZUjcA+aunoVRhqRZm8QQ9tG/CdrmQ9pZUKarRlj6YM
vIEnIC1iGMHKK1/QWNlpO6FcZ/ZNrDZdJKvFsmABE+b50kmPvvyTo5K6RtMbGeuh4m7/752uY1AKzMOxIYcGHNXq9SxU1YAt
71HWTUjrzIDe6gxoW3VGTcCXK7cOtAAjIv1xT0LYOI7UKWvhFlvr90a4hx5pZ27yNePMNuC1LV1UbLmrKlobitwueZLvCBoH
/hr6aZW+hvKEp/wNgiTn63PPcCp8oRD0+0zJ3xzrc56lf3JYJ/6JIkt5FhqJE30fe/EGNucXlH6cz6bnw/Ewe3zSz/nTD/X8
k92cebmk8yXZrshHMvNyHf9zkmuSz5PvK8k3ku8kv65+A0x+MzM=
"""


def old_file(folder: Path) -> Path:
    path = folder / "old.safetensors"
    path.write_bytes(zlib.decompress(base64.b64decode(WRITTEN_AS_1)))
    return path


def test_a_set_of_schema_1_is_migrated(tmp_path: Path) -> None:
    """Breaks if a set that was made before schema 2 is refused, or loses or changes something."""
    path = old_file(tmp_path)
    before = path.read_bytes()
    one = DistilledSet.load(path)
    assert torch.equal(one.images, torch.linspace(-1, 1, 8).view(2, 1, 2, 2))
    assert one.labels.tolist() == [0, 1]
    assert one.weight is not None
    assert torch.equal(one.weight, torch.linspace(0.5, 1.5, 9))
    assert torch.equal(one.transform.tensors()["std"], torch.tensor([2.0]))
    assert (one.lr, one.class_names, one.seed) == (0.25, ("cat", "dog"), 3)
    assert (one.config, one.summary) == ({"images_per_class": 1}, {"iteration": 5})
    assert path.read_bytes() == before, "loading writes into a user's file"
    one.save(tmp_path / "new.safetensors")
    assert DistilledSet.load(tmp_path / "new.safetensors").summary == {"iteration": 5}


@pytest.mark.parametrize(
    ("name", "told"), [("weight", "lacks weight"), ("transform.std", "lacks transform.std")]
)
def test_a_migrated_file_is_checked_as_a_new_one(tmp_path: Path, name: str, told: str) -> None:
    """Breaks if an older file may lack what a newer one may not."""

    def drop(header: dict[str, Any], metadata: dict[str, Any]) -> None:
        place = header.pop(name)["data_offsets"]
        header["rest"] = {"dtype": "U8", "shape": [place[1] - place[0]], "data_offsets": place}

    path = old_file(tmp_path)
    path.write_bytes(building.edited(path.read_bytes(), drop))
    with pytest.raises(ValueError, match=f"old.safetensors: {told}"):
        DistilledSet.load(path)


def test_what_is_written_is_of_the_newest_schema(tmp_path: Path) -> None:
    """Breaks if a file says it is of another version than it is."""
    path = tmp_path / "set.safetensors"
    building.distilled_set().save(path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = json.loads(header["__metadata__"]["iadd_fast"])
    assert metadata["schema"] == SCHEMA == len(MIGRATIONS) + 1
    assert set(metadata["tensors"]) == set(header) - {"__metadata__"}


def test_migrations_run_in_order_from_the_files_version() -> None:
    """Breaks if a step is left out, runs twice, or runs on a file that is past it."""
    steps = [lambda m, k=k: {**m, "steps": [*m.get("steps", []), k]} for k in (1, 2, 3)]
    for version in (1, 2, 3, 4):
        metadata = migrate("file", {"kind": "thing", "schema": version}, "thing", steps)
        assert metadata.get("steps", []) == [1, 2, 3][version - 1 :]
        assert metadata["schema"] == 4
    with pytest.raises(ValueError, match=r"newer iadd_fast .*version 5; this one reads up to 4"):
        migrate("file", {"kind": "thing", "schema": 5}, "thing", steps)


def test_a_step_that_finds_nonsense_names_the_file() -> None:
    """Breaks if a file that only says it is old gives a KeyError out of a migration."""
    with pytest.raises(ValueError, match="file: is no file of schema version 1 .*'gone'"):
        migrate("file", {"kind": "thing", "schema": 1}, "thing", [lambda m: m["gone"]])
