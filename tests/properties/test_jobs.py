"""The long calls: every argument is refused at once, or the job runs and its result is checked.

Settings have tests of their own (``test_settings.py``); here it is what stands beside them. Each
test breaks when an odd argument is found out after work has begun (an expert is trained, a folder
is made) or ends in an error of torch's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iadd_fast import DataShape, DistilledSet, compare, distill, evaluate, plan, train_experts, tune
from iadd_fast.artifacts import MemoryExperts
from iadd_fast.audit import audit
from iadd_fast.report import write_report
from tests.properties.strategies import (
    Refused,
    anything,
    normal,
    odd,
    result_of,
    small_data,
    small_set,
    small_student,
)

STUDENT = "mlp:width=3,depth=2"
#: Values that some call may take for what it asks: they are not drawn where it would work long.
TINY = {"epochs": 1, "count": 1, "augment": "none"}
MATCHING: dict[str, Any] = {
    "iterations": 2, "steps": 2, "expert_epochs": 1, "max_start_epoch": 0, "validation_epochs": 1,
    "validation_networks": 1, "augment": "none",
}  # fmt: skip
GRADIENT: dict[str, Any] = {
    "iterations": 2, "validation_epochs": 1, "validation_networks": 1, "augment": "none",
}  # fmt: skip


def few_experts() -> MemoryExperts:
    theta = small_student("mlp").init(0)
    return MemoryExperts([torch.stack([theta, theta + 0.1 * normal(len(theta))])])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in: whatever a call leaves behind is seen."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def once(call: Any, folder: Path, *inputs: Any) -> Any:
    """The result of a call; one that is refused has left nothing in ``folder``."""
    before = sorted(folder.rglob("*"))
    got = result_of(call, *inputs)
    if isinstance(got, Refused):
        assert sorted(folder.rglob("*")) == before, f"left something behind: {got}"
    return got


@pytest.mark.parametrize("name", ("data", "student", "preset", "device", "progress", "unknown"))
@given(value=odd)
def test_train_experts(name: str, value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Breaks when experts are begun before all arguments are known to be good."""
    folder = tmp_path_factory.mktemp("experts")
    arguments: dict[str, Any] = {"data": small_data(), "student": STUDENT, "progress": False}
    arguments = {**arguments, "out": folder / "out", **TINY, name: value}
    got = once(lambda: train_experts(**arguments), folder)
    if not isinstance(got, Refused):
        assert len(got) == 1
        assert got.epochs == 1
        assert got.snapshot(0, 1).isfinite().all()


@pytest.mark.parametrize(
    "name",
    (
        "data", "experts", "images_per_class", "importance", "method", "student", "preset",
        "device", "progress", "on_validation", "should_stop", "unknown",
    ),
)  # fmt: skip
@given(value=odd, method=st.sampled_from(("trajectory", "gradient")))
def test_distill(
    name: str, value: Any, method: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Breaks when True is one image a class, a folder of no experts is made, or a function is
    called only after hours and turns out to be none."""
    if callable(value):
        return  # what a user's function raises is its own
    folder = tmp_path_factory.mktemp("distill")
    arguments: dict[str, Any] = {
        "data": small_data(), "student": STUDENT, "progress": False, "out": folder / "out",
        "method": method, "lr_images": 0.1,
    }  # fmt: skip
    if method == "gradient":
        arguments |= GRADIENT
    else:
        arguments |= {"experts": few_experts(), **MATCHING}
    if name == "experts" and value is None:
        return  # trains its own
    got = once(lambda: distill(**{**arguments, name: value}), folder)
    if not isinstance(got, Refused):
        assert isinstance(got, DistilledSet)
        assert got.images.isfinite().all()
        wanted = value if name == "images_per_class" and value is not None else 1
        assert got.images_per_class == wanted
        back = DistilledSet.load(folder / "out" / "distilled.safetensors")
        assert torch.equal(back.images, got.images)


@pytest.mark.parametrize("count", (10**9, 2**63, 10**40, True, np.int64(10**9), 5, float("nan")))
def test_absurd_numbers_of_images_are_refused(count: Any, here: Path) -> None:
    """Breaks when 10^9 images a class are drawn ("noise" needs no real ones) before the check."""
    for initial in ("noise", "real", "kmeans"):
        for method, options in (("trajectory", MATCHING), ("gradient", GRADIENT)):
            arguments = {**options, "method": method, "initial": initial, "student": STUDENT}
            got = once(
                lambda arguments=arguments: distill(
                    small_data(), images_per_class=count, out="out", progress=False, **arguments
                ),
                here,
            )
            assert isinstance(got, Refused)
            assert got.startswith("images_per_class: ")


EVALUATE = (
    "distilled", "data", "architectures", "beside", "networks", "epochs", "batch_size",
    "baselines", "full", "full_epochs", "baseline_lr", "augment", "seed", "precision", "device",
    "progress", "keep", "on_trained",
)  # fmt: skip


@pytest.mark.parametrize("name", EVALUATE)
@given(value=anything())
def test_evaluate(name: str, value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Breaks when NaN is a learning rate, a text a list of names, or 0.5 a number of networks."""
    if callable(value) or (name == "keep" and isinstance(value, str | Path)):
        return
    if name in ("networks", "epochs", "full_epochs") and isinstance(value, int) and value > 10:
        return  # takes as long as it says
    if name == "architectures" and value == "auto":
        return
    folder = tmp_path_factory.mktemp("evaluate")
    arguments: dict[str, Any] = {
        "distilled": small_set(), "data": small_data(), "networks": 1, "epochs": 1,
        "full_epochs": 1, "baselines": ("random",), "augment": None, "progress": False,
    }  # fmt: skip
    got = once(lambda: evaluate(**{**arguments, name: value}), folder, value)
    if not isinstance(got, Refused):
        assert got.rows
        assert all(0 <= row.mean <= 100 for row in got.rows)


PLAN = (
    "data", "student", "images_per_class", "importance", "preset", "experts", "distill",
    "evaluate", "minutes", "memory", "disk", "device", "probe_seconds", "progress",
)  # fmt: skip


@pytest.mark.parametrize("name", PLAN)
@given(value=odd)
def test_plan(name: str, value: Any) -> None:
    """Breaks when a plan starts a process before its arguments are known to be good."""
    arguments: dict[str, Any] = {
        "data": DataShape(20, (1, 4, 4), 2), "student": STUDENT, "progress": False,
    }  # fmt: skip
    refusing = {"precision": "tf32"}  # on a CPU: after every other check, before any work
    if torch.cuda.is_available():
        return
    arguments |= {"experts": refusing}
    got = result_of(lambda: plan(**{**arguments, name: value}))
    if name == "experts" and not isinstance(got, Refused):
        assert not value
        return
    assert isinstance(got, Refused)


TUNE = (
    "data", "experts", "images_per_class", "importance", "minutes", "trials", "student", "preset",
    "device", "progress", "min_start_epoch", "first_max_start_epoch", "steps",
)  # fmt: skip


@pytest.mark.parametrize("name", TUNE)
@given(value=odd)
def test_tune(name: str, value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Breaks when a search is begun, and written down, before its arguments are good."""
    folder = tmp_path_factory.mktemp("tune")
    # The last check of all refuses, so that no trial runs: these augmentations are for images.
    data = small_data()
    arguments: dict[str, Any] = {
        "data": data, "out": folder / "out", "student": STUDENT, "progress": False, "trials": 1,
        "augment": "no such family",
    }  # fmt: skip
    assert isinstance(once(lambda: tune(**{**arguments, name: value}), folder), Refused)


@given(
    contenders=odd, device=odd, progress=odd, value=odd,
    name=st.from_regex("[a-z_]{1,9}", fullmatch=True),
)  # fmt: skip
def test_compare(contenders: Any, device: Any, progress: Any, name: Any, value: Any) -> None:
    """Breaks when a process is started for a contender that is none."""
    assert contenders is None or isinstance(result_of(lambda: compare(contenders)), Refused)
    never = ("no such contender",)
    assert isinstance(result_of(lambda: compare(never, device=device)), Refused)
    assert isinstance(result_of(lambda: compare(never, progress=progress)), Refused)
    assert isinstance(result_of(lambda: compare(never, **{name: value})), Refused)


REPORT = ("folder", "distilled", "audit", "evaluation", "metrics", "data", "command")


@pytest.mark.parametrize("name", REPORT)
@given(value=odd)
def test_write_report(name: str, value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Breaks when half a page is written, or a text of a stranger's stands in it unescaped."""
    folder = tmp_path_factory.mktemp("report")
    arguments: dict[str, Any] = {"folder": folder / "page", "distilled": small_set()}
    if name == "folder" and isinstance(value, str | Path) and value != "":
        return
    got = once(lambda: write_report(**{**arguments, name: value}), folder)
    if not isinstance(got, Refused):
        page = got.read_text()
        assert page.rstrip().endswith("</html>")


AUDIT = ("distilled", "data", "beside", "slices", "metrics", "networks", "seed", "progress", "keep")


@pytest.mark.parametrize("name", AUDIT)
@given(value=odd)
def test_audit(name: str, value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Breaks when networks are trained for an audit whose arguments are no good."""
    folder = tmp_path_factory.mktemp("audit")
    arguments: dict[str, Any] = {"distilled": small_set(), "data": small_data(), "progress": False}
    # Refused after every other check, before any training.
    arguments |= {"precision": "no such"}
    assert isinstance(once(lambda: audit(**{**arguments, name: value}), folder), Refused)
    got = once(lambda: audit(**{**arguments, "slices": {"mine": value}}), folder)
    assert isinstance(got, Refused)
