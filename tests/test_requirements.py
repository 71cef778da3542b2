"""What CI and a release install is pinned: every requirement, its dependencies, by its SHA-256."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import iadd_fast

ROOT = Path(iadd_fast.__file__).parent.parent
FILES = ("ci", "runtime", "tools")
# By its version alone, which the Makefile names: requirements/head.txt says why.
BY_VERSION = "torch"
PYTHONS = ("3.11", "3.12", "3.13")

pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").exists(), reason="needs the sources")


def pinned(file: str) -> list[tuple[Requirement, list[str]]]:
    """Every requirement of a file and its hashes; what is written otherwise is an error."""
    text = (ROOT / "requirements" / f"{file}.txt").read_text().replace("\\\n", "")
    found = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        requirement, *hashes = re.split(r"\s+--hash=", line.strip())
        found.append((Requirement(requirement), hashes))
    return found


def versions(file: str, name: str, python: str) -> list[str]:
    """The versions of ``name`` that a Linux with this Python installs from a file."""
    environment = {"python_version": python, "python_full_version": f"{python}.7"}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    return [
        str(requirement.specifier).removeprefix("==")
        for requirement, _ in pinned(file)
        if canonicalize_name(requirement.name) == canonicalize_name(name)
        and (requirement.marker is None or requirement.marker.evaluate(environment))
    ]


def project() -> dict[str, list[Requirement]]:
    """Extra ("" for none) -> what pyproject.toml asks for."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {"": table["dependencies"], **table["optional-dependencies"]}
    return {extra: [Requirement(text) for text in texts] for extra, texts in asked.items()}


@pytest.mark.parametrize("file", FILES)
def test_every_line_is_one_version_with_hashes(file: str) -> None:
    """Breaks when a line takes more than one version, or a file that nobody has looked at."""
    entries = pinned(file)
    assert len(entries) > 20
    for requirement, hashes in entries:
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", entry) for entry in hashes), requirement
        assert requirement.url is None and not requirement.name.startswith(("nvidia-", "cuda-"))


@pytest.mark.parametrize("python", PYTHONS)
def test_the_project_is_covered(python: str) -> None:
    """Breaks when pyproject.toml asks for what `make requirements` has not been run for since."""
    for extra, requirements in project().items():
        files = ("ci", "runtime") if extra == "" else ("ci",)
        for requirement in requirements:
            if requirement.name in (BY_VERSION, "iadd_fast"):
                continue
            for file in files:
                found = versions(file, requirement.name, python)
                assert len(found) == 1, f"{requirement}: {found} in {file}.txt for {python}"
                assert requirement.specifier.contains(found[0]), f"{requirement}: {found[0]}"
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    for requirement in map(Requirement, [*asked, "pip", "ninja"]):
        assert requirement.specifier.contains(versions("ci", requirement.name, python)[0])


def test_the_files_agree() -> None:
    """Breaks when a release is tested with other versions than its bill of materials lists."""
    tested = {(entry.name, str(entry.specifier), str(entry.marker)) for entry, _ in pinned("ci")}
    listed = {(entry.name, str(entry.specifier)) for entry, _ in pinned("runtime")}
    assert listed <= {(name, specifier) for name, specifier, _ in tested}


def test_torch_has_one_version() -> None:
    """Breaks when the pins were made for another torch than the Makefile installs."""
    named = re.search(r"^TORCH \?= torch==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named is not None
    (asked,) = (entry for entry in project()[""] if entry.name == BY_VERSION)
    assert asked.specifier.contains(Version(named[1]))
    assert f"torch=={named[1]}\n" in (ROOT / "requirements" / "ci.in").read_text()
    resolver = tomllib.loads((ROOT / "requirements" / "uv.toml").read_text())
    (described,) = resolver["dependency-metadata"]
    assert (described["name"], described["version"]) == (BY_VERSION, named[1])
    for file in FILES:
        assert all(entry.name != BY_VERSION for entry, _ in pinned(file))
