from __future__ import annotations

import importlib.metadata
import platform
import warnings
from types import SimpleNamespace

import pytest
import torch

from iadd_fast import doctor, ops


def test_versions_are_those_installed() -> None:
    """A version of another package under a name, or a missing package that stops the doctor."""
    rows = dict(doctor.versions())
    assert rows["torch"] == torch.__version__
    assert rows["iadd_fast"] == importlib.metadata.version("iadd_fast")
    assert rows["python"].startswith(platform.python_version() + " ")


def test_a_missing_package_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A doctor that dies of what it should report."""
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "iadd-fast-has-no-such-package"))
    assert dict(doctor.versions())["iadd-fast-has-no-such-package"] == "not installed"


def test_each_operator_shows_its_backends_and_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing backend shown as available, a reason dropped or under another operator."""
    found = {
        "norm_relu_pool": {"reference": None, "triton": None, "cuda": "no nvcc in PATH"},
        "distance": {"reference": None, "triton": "triton is not installed"},
    }
    monkeypatch.setattr(ops, "backends", lambda: found)
    assert doctor.diagnose().endswith(
        "backends\n"
        "  distance        reference\n"
        "                  no triton: triton is not installed\n"
        "  norm_relu_pool  reference, triton\n"
        "                  no cuda: no nvcc in PATH"
    )


def test_the_real_operators_are_shown() -> None:
    """An operator of the package that the doctor does not know."""
    text = doctor.diagnose()
    for operator in ops.backends():
        assert f"  {operator} " in text


def test_without_cuda_the_reason_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build without CUDA told apart from a driver that fails; its warning printed or raised."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    assert dict(doctor.devices())["cuda"] == "missing: torch was built without it"

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert dict(doctor.devices())["cuda"] == "missing: torch was built for 13.0 and sees no device"

    def old_driver() -> bool:
        warnings.warn("the driver is\ntoo old", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    assert dict(doctor.devices())["cuda"] == "missing: the driver is too old"


def test_every_cuda_device_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first device, or the properties of one under the name of another."""
    cards = [
        SimpleNamespace(name="Card A", major=9, minor=0, total_memory=80 * 2**30),
        SimpleNamespace(name="Card B", major=8, minor=6, total_memory=24 * 2**30),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    rows = dict(doctor.devices())
    assert rows["cuda:0"] == "Card A, compute capability 9.0, 80.0 GiB"
    assert rows["cuda:1"] == "Card B, compute capability 8.6, 24.0 GiB"
    assert "cuda" not in rows
