from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import iadd_fast
from iadd_fast import cli, preset
from iadd_fast.settings import DistillSettings, ExpertSettings, GradientSettings

ROOT = Path(iadd_fast.__file__).parent.parent
SIZES = (1, 10, 50)
#: J, K, last start epoch, batch, step of the images, of alpha, first alpha, ZCA: anchors 2.3.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "cifar10-ipc1": (50, 2, 2, None, 1e2, 1e-7, 0.01, "zca"),
    "cifar10-ipc10": (30, 2, 20, None, 1e2, 1e-5, 0.001, "zca"),
    "cifar10-ipc50": (30, 2, 40, None, 1e3, 1e-5, 0.001, "standard"),
    "cifar100-ipc1": (20, 3, 20, None, 1e3, 1e-5, 0.01, "zca"),
    "cifar100-ipc10": (20, 2, 20, None, 1e3, 1e-5, 0.01, "standard"),
    "cifar100-ipc50": (80, 2, 40, 125, 1e3, 1e-5, 0.01, "zca"),
    "tiny-imagenet-ipc1": (10, 2, 10, None, 1e4, 1e-4, 0.01, "standard"),
    "tiny-imagenet-ipc10": (20, 2, 40, 200, 1e4, 1e-4, 0.01, "standard"),
    "tiny-imagenet-ipc50": (20, 2, 40, 300, 1e4, 1e-4, 0.01, "standard"),
}
SMALL: dict[str, Any] = {
    "iterations": 1,
    "steps": 2,
    "max_start_epoch": 0,
    "expert_epochs": 1,
    "validation_networks": 1,
    "validation_epochs": 1,
}


@pytest.fixture(scope="module")
def data() -> iadd_fast.Data:
    return iadd_fast.load_data("digits", normalise="zca")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets with two experts instead of a hundred, and a student of width 4."""
    known = {
        name: preset.Preset(
            **{
                **vars(entry),
                "experts": {**entry.experts, "count": 2} if entry.experts else {},
                "student": "convnet:width=4,depth=2",
            }
        )
        for name, entry in iadd_fast.presets().items()
    }
    monkeypatch.setattr(preset, "_all", lambda: known)


def test_presets_are_the_published_ones() -> None:
    """A number mistyped, a preset missing, or one that names no source."""
    known = {k: entry for k, entry in iadd_fast.presets().items() if entry.method == "trajectory"}
    families = ("cifar10", "cifar100", "tiny-imagenet", "fashion-mnist")
    assert list(known) == [f"{family}-ipc{size}" for family in families for size in SIZES]
    for name, entry in known.items():
        settings = DistillSettings.of(**entry.values("distill"))
        if name in PUBLISHED:
            found = (
                settings.steps, settings.expert_epochs, settings.max_start_epoch,
                settings.batch_size, settings.lr_images, settings.lr_lr, settings.lr_init,
                entry.data["normalise"],
            )  # fmt: skip
            assert found == PUBLISHED[name]
        assert settings.iterations == 5000
        assert ("DC-BENCH" in entry.source) == (name in PUBLISHED)
        assert name in PUBLISHED or entry.source.startswith("ours")
        assert entry.name == name and name.endswith(f"-ipc{entry.images_per_class}")
        experts = ExpertSettings.of(**entry.experts)
        assert (experts.count, experts.epochs, experts.lr, experts.momentum) == (100, 50, 0.01, 0.0)
        assert entry.evaluate == {"networks": 5, "epochs": 1000, "batch_size": 256}
        assert f"depth={4 if 'tiny' in name else 3}" in entry.student


def test_gradient_presets_are_the_published_ones() -> None:
    """A number mistyped, DSA's settings for DC, or loops of another number of images."""
    known = {k: entry for k, entry in iadd_fast.presets().items() if entry.method == "gradient"}
    sizes = {"cifar10": SIZES, "cifar100": SIZES[:2], "fashion-mnist": SIZES}
    assert list(known) == [
        f"{paper}-{family}-ipc{size}"
        for paper in ("dc", "dsa")
        for family in sizes
        for size in sizes[family]
    ]
    loops = {1: (1, 1), 10: (10, 50), 50: (50, 10)}
    for name, entry in known.items():
        settings = GradientSettings.of(**entry.values("distill"))
        augmented = name.startswith("dsa-")
        assert (settings.image_updates, settings.network_epochs) == loops[entry.images_per_class]
        assert (settings.iterations, settings.batch_real, settings.batch_size) == (1000, 256, 256)
        assert (settings.lr_images, settings.momentum, settings.lr_net) == (0.1, 0.5, 0.01)
        assert settings.augment == ("dsa" if augmented else "none")
        assert settings.initial == ("real" if augmented else "noise")
        assert entry.evaluate["epochs"] == (1000 if augmented else 300)
        assert entry.evaluate["networks"] == 20
        assert entry.student == "convnet:width=128,depth=3"
        assert "VICO-UoE/DatasetCondensation" in entry.source
        assert name.endswith(f"-ipc{entry.images_per_class}")
        with pytest.raises(ValueError, match=f"preset: '{name}' is for method 'gradient'"):
            entry.values("experts")


def test_experts_go_no_further_than_the_schedule() -> None:
    """Fifty epochs trained where four are looked at."""
    known = iadd_fast.presets()
    assert known["cifar10-ipc1"].values("experts")["epochs"] == 4
    assert known["cifar10-ipc50"].values("experts")["epochs"] == 42


def test_an_unknown_preset_lists_the_known_ones(data: iadd_fast.Data) -> None:
    """A mistyped name taken for no preset."""
    for call in (iadd_fast.distill, iadd_fast.train_experts):
        with pytest.raises(ValueError, match="preset: got 'cifar'; takes one of cifar10-ipc1, "):
            call(data, preset="cifar")


@pytest.mark.usefixtures("few")
def test_distill_takes_the_preset_and_what_is_given_wins(data: iadd_fast.Data) -> None:
    """A preset over explicit settings, dropped, or missing in the artifact."""
    made = iadd_fast.distill(data, preset="cifar10-ipc10", progress=False, **SMALL)
    assert made.config["preset"] == "cifar10-ipc10"
    assert made.images_per_class == made.config["images_per_class"] == 10
    assert (made.config["lr_init"], made.config["lr_images"]) == (0.001, 100.0)
    assert (made.config["steps"], made.config["iterations"]) == (2, 1)
    assert (made.student_spec["width"], made.student_spec["depth"]) == (4, 2)
    few = iadd_fast.distill(
        data, None, 1, preset="cifar10-ipc10", student="mlp:width=4", progress=False, **SMALL
    )
    assert few.images_per_class == 1 and few.student_spec["name"] == "mlp"


@pytest.mark.usefixtures("few")
def test_a_gradient_preset_needs_no_method() -> None:
    """Trajectory matching under the name of DSA, or experts trained for nothing."""
    data = iadd_fast.load_data("digits")
    small: dict[str, Any] = {
        "iterations": 1,
        "validation_networks": 1,
        "validation_epochs": 1,
        "batch_real": 4,
    }
    made = iadd_fast.distill(data, preset="dsa-cifar10-ipc1", progress=False, **small)
    assert (made.config["method"], made.config["preset"]) == ("gradient", "dsa-cifar10-ipc1")
    assert (made.student_spec["width"], made.images_per_class) == (4, 1)
    with pytest.raises(ValueError, match="preset: 'dsa-cifar10-ipc1' is for method 'gradient'"):
        iadd_fast.train_experts(data, preset="dsa-cifar10-ipc1", progress=False)


@pytest.mark.usefixtures("few")
def test_train_experts_takes_the_preset(data: iadd_fast.Data, tmp_path: Path) -> None:
    """Ten experts of the default, or the preset's student over the experts' own."""
    trained = iadd_fast.train_experts(
        data, "mlp:width=4", tmp_path, preset="cifar10-ipc1", epochs=1, progress=False
    )
    assert (len(trained), trained.epochs) == (2, 1)
    made = iadd_fast.distill(data, tmp_path, preset="cifar10-ipc1", progress=False, **SMALL)
    assert made.student_spec["name"] == "mlp"


@pytest.mark.usefixtures("few")
def test_another_normalisation_is_told() -> None:
    """The preset's numbers on images of another space, without a word."""
    data = iadd_fast.load_data("digits")
    with pytest.warns(UserWarning, match="'cifar10-ipc1' is for images normalised by 'zca'"):
        iadd_fast.train_experts(data, preset="cifar10-ipc1", epochs=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iadd_fast.train_experts(data, preset="fashion-mnist-ipc1", epochs=1, progress=False)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[Any, dict[str, Any]]:
    """The command's result and what load_data and the job behind it got."""
    seen: dict[str, Any] = {}

    def fake(name: str, answer: Any) -> Any:
        return lambda *_, **keywords: seen.update({name: keywords}) or answer

    trained = type("Trained", (), {"epochs": 4, "__len__": lambda self: 10})()
    monkeypatch.setattr("iadd_fast.cli.common.load_data", fake("load_data", "data"))
    monkeypatch.setattr(cli, "distill", fake("job", "set"))
    monkeypatch.setattr(cli, "train_experts", fake("job", trained))
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments]), seen


def test_the_command_line_takes_a_preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Defaults over the preset, the preset over the file or a flag, or data in another space."""
    config = tmp_path / "c.toml"
    config.write_text('preset = "cifar100-ipc50"\nsteps = 7\niterations = 8\n')
    arguments = ("distill", "x", "--out", tmp_path, "--config", config, "--iterations", 9)
    result, seen = call(monkeypatch, *arguments)
    assert result.exit_code == 0, result.output
    job = seen["job"]
    assert (job["preset"], job["steps"], job["iterations"]) == ("cifar100-ipc50", 7, 9)
    assert (job["batch_size"], job["lr_images"]) == (125, 1e3)
    assert seen["load_data"]["normalise"] == "zca"
    _, seen = call(monkeypatch, *arguments, "--normalise", "none", "--preset", "cifar10-ipc1")
    assert (seen["load_data"]["normalise"], seen["job"]["batch_size"]) == ("none", None)
    _, seen = call(monkeypatch, "experts", "x", "--out", tmp_path, "--preset", "cifar10-ipc10")
    assert (seen["job"]["count"], seen["job"]["epochs"]) == (100, 22)
    result, seen = call(monkeypatch, "distill", "x", "--out", tmp_path, "--preset", "no")
    assert result.exit_code == 2 and seen == {}
    assert result.stderr.startswith("iadd-fast: preset: got 'no'; takes one of cifar10-ipc1,")


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the sources")
def test_the_wheel_holds_the_presets(tmp_path: Path) -> None:
    """A data file that only a checkout has."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    # In a folder of its own: an egg-info of an earlier build lists the file all the same.
    command += ["build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "iadd_fast" / preset.FILE).is_file()
