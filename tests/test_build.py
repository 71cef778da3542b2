"""What ``setup.py`` does where something is missing: the build goes on and its reason is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import iadd_fast

ROOT = Path(iadd_fast.__file__).parent.parent
WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None
sys.argv = ["setup.py", "-q", *sys.argv[1:]]
runpy.run_path("setup.py", run_name="__main__")
"""

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the sources")


def build(
    into: Path, *before: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """``setup.py build`` run by itself; the line it prints and the reasons it keeps."""
    run = subprocess.run(
        [sys.executable, *before, "build", "--build-base", str(into)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(into), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    (report,) = into.rglob("build.json")
    return run, json.loads(report.read_text())


def test_without_torch_the_wheel_is_pure_and_says_why(tmp_path: Path) -> None:
    """pip's isolated build: breaks when importing torch is needed to install."""
    run, reasons = build(tmp_path, "-c", WITHOUT_TORCH)
    assert "iadd_fast kernels: built none; cpu not: torch could not be imported" in run.stdout
    assert "--no-build-isolation" in reasons["cpu"] and "torch" in reasons["cuda"]
    assert not list(tmp_path.rglob("*.so"))


def test_without_a_compiler_the_rest_is_installed(tmp_path: Path) -> None:
    """Breaks when a missing compiler ends the installation, or its name is not told."""
    _, reasons = build(tmp_path, "setup.py", CXX="/no/such/compiler")
    assert reasons["cpu"].startswith("no C++ compiler: /no/such/compiler")
    assert list(tmp_path.rglob("norm_relu_pool.py"))


def test_a_compiler_that_fails_leaves_its_reason(tmp_path: Path) -> None:
    """Breaks when a compiler too old for C++20 stops the build, or the reason is lost."""
    _, reasons = build(tmp_path, "setup.py", CXX="false")
    assert reasons["cpu"].startswith("the build failed:")
    assert not list(tmp_path.rglob("*.so"))
