from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from iadd_fast import cli
from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit import audit
from iadd_fast.data.transform import Identity
from iadd_fast.distillation import distill
from iadd_fast.distillation_run import DistillationDiverged
from iadd_fast.evaluation import evaluate
from iadd_fast.evaluation_rows import Evaluation, EvaluationRow
from iadd_fast.experts import train_experts
from iadd_fast.settings import DistillSettings, ExpertSettings, GradientSettings

COMMANDS: dict[str, type[Any]] = {
    "experts": ExpertSettings,
    "distill": DistillSettings,
    "distill --method gradient": GradientSettings,
}
FIELDS = [
    (name, field.name) for name, group in COMMANDS.items() for field in dataclasses.fields(group)
]
#: Where a value that is only different from the default would be refused.
OTHER = {"initial": "noise", "ema": 0.9, "momentum": 0.25}


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def other_value(group: type[Any], name: str) -> Any:
    if name in OTHER:
        return OTHER[name]
    field = next(field for field in dataclasses.fields(group) if field.name == name)
    default: Any = field.default
    if field.type == "bool":
        return not default
    if field.type in ("int", "int | None"):
        return (default or 0) + 7
    if field.type in ("float", "float | None"):
        return (default or 0.0) + 0.125
    return "other"


def small_set() -> DistilledSet:
    return DistilledSet(
        images=torch.linspace(0.0, 1.0, 32).view(2, 1, 4, 4),
        labels=torch.tensor([0, 1]),
        lr=0.01,
        class_names=("a", "b"),
        transform=Identity(),
        student_spec={"name": "mlp", "inputs": [1, 4, 4], "classes": 2, "width": 3, "depth": 2},
        data_name="rows",
        data_fingerprint="ab" * 32,
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the Python calls behind the commands got: name -> (positional, keywords)."""
    seen: dict[str, Any] = {}

    def fake(name: str, answer: Any) -> None:
        def record(*positional: Any, **keywords: Any) -> Any:
            seen[name] = positional, keywords
            return answer

        where = "iadd_fast.cli.common" if name == "load_data" else "iadd_fast.cli"
        monkeypatch.setattr(f"{where}.{name}", record)

    trained = type("Trained", (), {"epochs": 4, "__len__": lambda self: 10})()
    fake("load_data", "the data")
    fake("train_experts", trained)
    fake("distill", "the set")
    fake("evaluate", Evaluation([EvaluationRow("iadd", "mlp", [50.0, 60.0], 1.0, 144, 2)]))
    return seen


CALLED = {"experts": "train_experts", "distill": "distill"}


@pytest.mark.parametrize(("command", "name"), FIELDS)
@pytest.mark.parametrize("by", ["flag", "file"])
def test_every_setting_arrives(
    calls: dict[str, Any], tmp_path: Path, command: str, name: str, by: str
) -> None:
    """A field without a flag, under another name, of a wrong type or dropped on the way."""
    value = other_value(COMMANDS[command], name)
    arguments: list[object] = [*command.split(), "digits", "--out", tmp_path]
    if by == "file":
        config = tmp_path / "config.toml"
        config.write_text(f"{name} = {json.dumps(value)}\n")
        arguments += ["--config", config]
    elif isinstance(value, bool):
        arguments.append(("--" if value else "--no-") + name.replace("_", "-"))
    else:
        arguments += ["--" + name.replace("_", "-"), value]
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    got = calls[CALLED[command.split()[0]]][1][name]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_are_those_of_python(calls: dict[str, Any], tmp_path: Path, command: str) -> None:
    """A command whose run differs from the same call in Python, or a setting of another method
    sent along, which the call refuses."""
    job, *method = command.split()
    result = call(job, *method, "digits", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    positional, keywords = calls[CALLED[job]]
    assert positional == ("the data",)
    only_in_python = ("out", "on_validation", "should_stop")
    expected = _defaults({"experts": train_experts, "distill": distill}[job])
    expected = {name: value for name, value in expected.items() if name not in only_in_python}
    expected |= {"method": "gradient"} if method else {}
    expected |= {field.name: field.default for field in dataclasses.fields(COMMANDS[command])}
    assert keywords == expected | {"out": tmp_path}
    assert calls["load_data"] == (("digits",), _data_defaults())


def test_a_setting_of_another_method_is_refused(tmp_path: Path) -> None:
    """Dropped in silence on the command line, or an error that does not say who takes it."""
    config = tmp_path / "config.toml"
    config.write_text("lr_net = 0.1\n")
    for arguments, told in (
        (("--method", "gradient", "--steps", 3), "steps: is a setting of method 'trajectory'"),
        (("--config", config), "lr_net: is a setting of method 'gradient'"),
        (("--method", "gradient", "--importance", "fisher"), "importance: got 'fisher'; method"),
        (("--method", "gradient", "--experts", "e"), "experts: method 'gradient' takes none"),
        (("--method", "dm"), "method: got 'dm'; takes one of trajectory, gradient"),
        (
            ("--preset", "dsa-cifar10-ipc1", "--method", "trajectory"),
            "method: got 'trajectory'; preset 'dsa-cifar10-ipc1' is for method 'gradient'",
        ),
    ):
        result = call("distill", "digits", "--out", tmp_path / "out", *arguments)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert told in line
    assert not (tmp_path / "out").exists()


def test_a_gradient_preset_brings_its_method(calls: dict[str, Any], tmp_path: Path) -> None:
    """The defaults of trajectory matching sent along with the settings of the preset."""
    result = call("distill", "digits", "--out", tmp_path, "--preset", "dc-cifar10-ipc10")
    assert result.exit_code == 0, result.output
    keywords = calls["distill"][1]
    assert (keywords["image_updates"], keywords["network_epochs"]) == (10, 50)
    assert (keywords["augment"], keywords["initial"]) == ("none", "noise")
    assert "steps" not in keywords and "lr_lr" not in keywords
    assert keywords["lr_images"] == 0.1


def test_evaluate_has_the_defaults_of_python(calls: dict[str, Any], tmp_path: Path) -> None:
    """An evaluation from the command line under another protocol than evaluate()'s."""
    small_set().save(tmp_path / "set.safetensors")
    result = call("evaluate", tmp_path / "set.safetensors", "digits")
    assert result.exit_code == 0, result.output
    in_python_only = ("beside", "keep", "on_trained")
    expected = {k: v for k, v in _defaults(evaluate).items() if k not in in_python_only}
    assert calls["evaluate"][1] == expected | {"keep": tmp_path / "networks"}


def _defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _data_defaults() -> dict[str, Any]:
    from iadd_fast.data import load_data

    return {name: value for name, value in _defaults(load_data).items() if name != "name"}


def test_flag_wins_over_file_and_file_over_default(calls: dict[str, Any], tmp_path: Path) -> None:
    """Reading the file last, or a flag's default hiding the file's value."""
    config = tmp_path / "config.toml"
    config.write_text(
        'data = "from/file"\nout = "runs"\nsteps = 11\niterations = 12\ncompile = true'
    )
    result = call("distill", "--config", config, "--steps", 7, "--no-compile")
    assert result.exit_code == 0, result.output
    _, keywords = calls["distill"]
    assert calls["load_data"][0] == ("from/file",)
    assert keywords["out"] == Path("runs")
    assert (keywords["steps"], keywords["iterations"], keywords["compile"]) == (7, 12, False)
    assert keywords["expert_epochs"] == DistillSettings().expert_epochs


def test_a_flag_equal_to_the_default_wins_over_the_file(
    calls: dict[str, Any], tmp_path: Path
) -> None:
    """Telling a given flag from a missing one by its value."""
    config = tmp_path / "config.toml"
    config.write_text("count = 3\n")
    call("experts", "digits", "--out", tmp_path, "--config", config, "--count", 10)
    assert calls["train_experts"][1]["count"] == 10


def test_importance_arrives_as_written(calls: dict[str, Any], tmp_path: Path) -> None:
    """Splitting the options of a policy at their commas."""
    text = "adaptive:direction=descent,learning_rate=0.01"
    call("distill", "digits", "--out", tmp_path, "--importance", text, "--images-per-class", 3)
    assert calls["distill"][1]["importance"] == text
    assert calls["distill"][1]["images_per_class"] == 3


def test_data_options_arrive(calls: dict[str, Any], tmp_path: Path) -> None:
    """The seed of the run deciding what is held out, which would part experts from distillation."""
    call(
        "experts", "some/folder", "--out", tmp_path, "--seed", 5, "--data-seed", 6,
        "--normalise", "zca", "--validation-fraction", 0.25, "--test-fraction", 0, "--image-size",
        16, "--labels", "l.npy", "--test", "t.npy", "--test-labels", "tl.npy",
    )  # fmt: skip
    assert calls["load_data"] == (
        ("some/folder",),
        {
            "labels": "l.npy",
            "test": "t.npy",
            "test_labels": "tl.npy",
            "normalise": "zca",
            "validation_fraction": 0.25,
            "test_fraction": 0.0,
            "image_size": 16,
            "cache": None,
            "seed": 6,
        },
    )
    assert calls["train_experts"][1]["seed"] == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr_image = 3\n", ("'lr_image'", "lr_images", "images_per_class", "data_seed")),
        ('steps = "many"\n', ("steps", "'many'", "a whole number")),
        ("steps = true\n", ("steps", "True", "a whole number")),
        ("steps = 1.5\n", ("steps", "1.5", "a whole number")),
        ("compile = 1\n", ("compile", "1", "true or false")),
        ("lr_images = false\n", ("lr_images", "False", "a number")),
        ("augment = 3\n", ("augment", "3", "a text")),
        ("steps = \n", ("is not TOML",)),
        ("steps = 1\na" + ".a" * 101 + " = 1\n", ("line 2 has 101 dots; takes at most 100",)),
        (f"a = {{{'x' * 10**5} = 1, {'x' * 10**5} = 2}}\n", ("is not TOML",)),
    ],
)
def test_a_wrong_file_is_one_clear_error(
    calls: dict[str, Any], tmp_path: Path, text: str, told: tuple[str, ...]
) -> None:
    """A key ignored in silence, a value of another type passed on, a key whose parts take all
    memory, a message as long as the file, or a traceback."""
    config = tmp_path / "config.toml"
    config.write_text(text)
    result = call("distill", "digits", "--out", tmp_path / "runs", "--config", config)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert str(config) in line
    assert len(line) < 2000
    for part in told:
        assert part in line
    assert calls == {}


def test_settings_may_have_dots(calls: dict[str, Any], tmp_path: Path) -> None:
    """Breaks if the dots of a whole file are counted, where only a key's take memory."""
    config = tmp_path / "config.toml"
    config.write_text("# " + "." * 100 + "\n# " + "." * 100 + "\nsteps = 3\nlr_images = 0.5\n")
    result = call("distill", "digits", "--out", tmp_path / "runs", "--config", config)
    assert result.exit_code == 0, result.stderr


def test_a_missing_file_of_settings(calls: dict[str, Any], tmp_path: Path) -> None:
    """Running with the defaults where the user named settings."""
    result = call("experts", "digits", "--out", tmp_path, "--config", tmp_path / "no.toml")
    assert result.exit_code == 2
    assert "no.toml" in result.stderr
    assert calls == {}


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [(("distill", "--out", "x"), "data"), (("distill", "digits"), "out"), (("report",), "set")],
)
def test_what_has_to_be_given(
    calls: dict[str, Any], arguments: tuple[str, ...], missing: str
) -> None:
    """None or ... reaching a Python call in place of a path."""
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"iadd-fast: {missing}: missing")
    assert calls == {}


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("steps: got 0;\n  takes 1"), 2, "steps: got 0; takes 1"),
        (TypeError("stepz: no such setting"), 2, "stepz: no such setting"),
        (FileNotFoundError(2, "No such file or directory", "a/b"), 2, "a/b: No such file or d"),
        (FileNotFoundError("experts: no folder at a/b"), 2, "experts: no folder at a/b"),
        (DistillationDiverged("20 outer steps were skipped"), 1, "20 outer steps were skipped"),
        (KeyboardInterrupt("stopped after iteration 3"), 130, "stopped after iteration 3"),
        (KeyboardInterrupt(), 130, "KeyboardInterrupt"),
    ],
)
def test_an_error_is_one_line(
    calls: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: BaseException,
    status: int,
    text: str,
) -> None:
    """A traceback, several lines or status 0 for what the user did."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "distill", fail)
    result = call("distill", "digits", "--out", tmp_path)
    assert result.exit_code == status
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"iadd-fast: {text}")


def test_a_bug_keeps_its_traceback(
    calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Errors of the program's own making dressed up as the user's."""
    monkeypatch.setattr(cli, "distill", lambda *_, **__: 1 // 0)
    result = call("distill", "digits", "--out", tmp_path)
    assert isinstance(result.exception, ZeroDivisionError)


def test_evaluate_writes_what_report_reads(calls: dict[str, Any], tmp_path: Path) -> None:
    """An evaluation.json elsewhere than beside the set, or one that from_dict does not read."""
    small_set().save(tmp_path / "distilled.safetensors")
    result = call(
        "evaluate", tmp_path / "distilled.safetensors", "digits", "--baselines", "none",
        "--architectures", "convnet:width=8,depth=2", "--architectures", "mlp", "--no-full",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (held, data), keywords = calls["evaluate"]
    assert torch.equal(held.images, small_set().images)
    assert data == "the data"
    assert keywords["baselines"] == ()
    assert keywords["architectures"] == ["convnet:width=8,depth=2", "mlp"]
    assert keywords["full"] is False
    read = Evaluation.from_dict(json.loads((tmp_path / "evaluation.json").read_text()))
    assert read.rows[0].accuracies == [50.0, 60.0]
    assert "55.00" in result.stdout


@pytest.mark.parametrize("given", [False, True])
def test_report_takes_what_lies_beside_the_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: bool
) -> None:
    """A page without the curves or accuracies that are there, or with those of another run."""
    seen: dict[str, Any] = {}

    def write_report(folder: Path, distilled: DistilledSet, **keywords: Any) -> Path:
        seen.update(keywords, folder=folder, lr=distilled.lr)
        return folder / "index.html"

    monkeypatch.setattr("iadd_fast.report.write_report", write_report)
    run, other = tmp_path / "run", tmp_path / "other"
    for number, folder in enumerate((run, other)):
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("")
        (folder / "evaluation.json").write_text(json.dumps({"rows": [], "number": number}))
    small_set().save(run / "distilled.safetensors")
    arguments: list[object] = ["report", run / "distilled.safetensors", "--out", tmp_path / "page"]
    if given:
        arguments += ["--metrics", other / "metrics.jsonl"]
        arguments += ["--evaluation", other / "evaluation.json"]
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert seen["metrics"] == (other if given else run) / "metrics.jsonl"
    assert seen["evaluation"]["number"] == int(given)
    assert (seen["folder"], seen["lr"]) == (tmp_path / "page", 0.01)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What an audit and the page behind ``report --data`` got."""
    seen: dict[str, Any] = {}
    data = SimpleNamespace(test=[0, 1, 2], test_rows=None)

    def audit(distilled: DistilledSet, data: Any, architectures: Any, **given: Any) -> str:
        seen["audit"] = {"data": data, "architectures": architectures, **given}
        return "the audit"

    def write_report(folder: Path, distilled: DistilledSet, **given: Any) -> Path:
        seen["page"] = given
        return folder / "index.html"

    monkeypatch.setattr("iadd_fast.cli.common.load_data", lambda source, **_: data)
    monkeypatch.setattr("iadd_fast.audit.audit", audit)
    monkeypatch.setattr("iadd_fast.report.write_report", write_report)
    seen["data"] = data
    return seen


def test_report_measures_on_data(measured: dict[str, Any], tmp_path: Path) -> None:
    """An option that does not reach the audit, or a page of numbers without what they rest on."""
    paths = [tmp_path / f"{name}.safetensors" for name in ("one", "two", "three")]
    for path in paths:
        small_set().save(path)
    slices = tmp_path / "slices.csv"
    slices.write_text("site\nA\nB\nA\n")
    arguments = [
        "report", paths[0], "--data", "digits", "--out", tmp_path / "page", "--beside", paths[1],
        "--beside", paths[2], "--slices", slices, "--networks", 3, "--epochs", 7, "--seed", 5,
        "--architectures", "mlp:width=3,depth=2", "--full-epochs", 2, "--no-progress",
    ]  # fmt: skip
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    given = measured["audit"]
    assert list(given["beside"]) == ["distilled set (1)", "distilled set (2)"]
    assert list(given["slices"]["site"]) == ["A", "B", "A"]
    assert (given["networks"], given["epochs"], given["full_epochs"], given["seed"]) == (3, 7, 2, 5)
    assert given["architectures"] == ["mlp:width=3,depth=2"]
    assert given["keep"] == tmp_path / "page" / "networks"
    assert given["data"] is measured["data"]
    page = measured["page"]
    assert (page["audit"], page["data"]) == ("the audit", measured["data"])
    again = shlex.split(page["report_command"])
    measured.pop("audit")
    result = call(*again[1:], "--no-progress")
    assert result.exit_code == 0, result.output
    sets = given.pop("beside"), measured["audit"].pop("beside")
    assert [list(names) for names in sets] == [list(sets[0])] * 2
    assert measured["audit"] == given


def test_report_has_the_defaults_of_the_audit(measured: dict[str, Any], tmp_path: Path) -> None:
    """A report under another protocol than audit()'s and evaluate()'s."""
    small_set().save(tmp_path / "set.safetensors")
    result = call("report", tmp_path / "set.safetensors", "--data", "x", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    given = {k: v for k, v in measured["audit"].items() if k not in ("data", "keep")}
    assert given == {k: v for k, v in _defaults(audit).items() if k != "keep"} | {"beside": {}}


@pytest.mark.parametrize("option", ["--beside", "--slices", "--architectures"])
def test_report_without_data_takes_nothing_that_needs_them(tmp_path: Path, option: str) -> None:
    """A comparison asked for and left out in silence."""
    small_set().save(tmp_path / "set.safetensors")
    result = call("report", tmp_path / "set.safetensors", "--out", tmp_path / "page", option, "x")
    assert result.exit_code == 2
    assert f"{option[2:]}: needs --data" in result.stderr
    assert not (tmp_path / "page").exists()


def test_report_says_which_file_is_missing(tmp_path: Path) -> None:
    """A traceback for a mistyped path."""
    result = call("report", tmp_path / "no.safetensors", "--out", tmp_path)
    assert result.exit_code == 2
    assert "no.safetensors" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_main_runs_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An entry point that runs nothing, or a warning printed with a line of source code."""
    monkeypatch.setattr(cli, "diagnose", lambda: "all well")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr("sys.argv", ["iadd-fast", "doctor"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None)
    assert capsys.readouterr().out == "all well\n"
    assert warnings.formatwarning("so", UserWarning, "f.py", 1) == "iadd-fast: warning: so\n"


def test_demo_goes_where_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A demo that always writes into demo/."""
    seen: list[Any] = []
    fake = SimpleNamespace(run_demo=lambda out, progress: seen.append((out, progress)))
    monkeypatch.setitem(sys.modules, "iadd_fast.demo", fake)
    assert call("demo", "--out", tmp_path, "--no-progress").exit_code == 0
    assert call("demo").exit_code == 0
    assert seen == [(tmp_path, False), (Path("demo"), True)]


def test_the_whole_job_on_files(tmp_path: Path) -> None:
    """Commands that do not read what the one before has written."""
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = (generator.random((40, 4, 4)) * 0.2).astype(np.float32)
    images[labels == 1, :2] += 0.8
    np.savez(tmp_path / "rows.npz", images=images, labels=labels)
    data, run = tmp_path / "rows.npz", tmp_path / "run"
    quiet = ["--no-progress", "--device", "cpu"]
    student = ["--student", "mlp:width=8,depth=2", "--augment", "none"]
    result = call(
        "experts", data, "--out", run / "experts", "--count", 2, "--epochs", 2, *student, *quiet
    )
    assert result.exit_code == 0, result.output
    config = tmp_path / "distill.toml"
    config.write_text(
        "iterations = 3\nsteps = 2\nexpert_epochs = 1\nmax_start_epoch = 1\n"
        'validation_networks = 1\nvalidation_epochs = 2\nimportance = "uniform"\n'
    )
    result = call(
        "distill", data, "--experts", run / "experts", "--out", run, "--config", config, *quiet,
        "--augment", "none",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    result = call(
        "evaluate", run / "distilled.safetensors", data, "--networks", 1, "--epochs", 2,
        "--full-epochs", 1, *quiet,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    result = call("report", run / "distilled.safetensors", "--out", run)
    assert result.exit_code == 0, result.output
    page = (run / "index.html").read_text()
    assert "rows" in page
    assert "herding" in page
