"""The command line: the Python calls under the same names, from flags or a TOML file."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import typer

from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.files import read_json, write_json
from iadd_fast.comparison import CompareSettings, compare
from iadd_fast.data import Data, load_data
from iadd_fast.distillation import distill
from iadd_fast.doctor import diagnose
from iadd_fast.evaluation import evaluate
from iadd_fast.experts import train_experts
from iadd_fast.options import Values, command
from iadd_fast.settings import DistillSettings, ExpertSettings, Settings, setting

SET = "distilled.safetensors"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"

app = typer.Typer(
    name="iadd-fast",
    help="Dataset distillation by trajectory matching with learned importance weights (IADD).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line."""
    warnings.formatwarning = lambda message, *_, **__: f"iadd-fast: warning: {message}\n"
    app()


def _of(function: Any, name: str) -> Any:
    """The default of a keyword of ``function``, so that it stands in one place."""
    return inspect.signature(function).parameters[name].default


@dataclass(frozen=True)
class DataOptions(Settings):
    """What :func:`~iadd_fast.data.load_data` takes."""

    data: str = setting(
        ..., "digits, or a path: class folders of images, IDX, CIFAR batches, .npz or .npy"
    )
    labels: str | None = setting(None, "labels.npy of an .npy of samples")
    test: str | None = setting(None, "test part, where it lies elsewhere")
    test_labels: str | None = setting(None, "labels of an .npy of test samples")
    normalise: str = setting(_of(load_data, "normalise"), "standard, zca or none")
    validation_fraction: float = setting(
        _of(load_data, "validation_fraction"), "share of the training part held out to choose on"
    )
    test_fraction: float = setting(
        _of(load_data, "test_fraction"),
        "share held out for the test where the data has no test part",
    )
    image_size: int | None = setting(None, "side to which images of a folder are resized")
    data_seed: int = setting(_of(load_data, "seed"), "fixes what is held out")


@dataclass(frozen=True)
class RunOptions(Settings):
    """What every training takes."""

    student: str | None = setting(
        None, "network such as convnet:width=32; default: the ConvNet of the data's shape"
    )
    device: str | None = setting(None, "cpu, cuda, cuda:1; default: cuda where there is one")
    progress: bool = setting(True, "show progress")


@dataclass(frozen=True)
class ExpertOptions(Settings):
    """Of ``experts`` alone."""

    preset: str | None = setting(
        None, "published settings such as cifar10-ipc1, which flags and the file override"
    )
    out: Path = setting(..., "folder for the experts; the same call goes on from what is there")


@dataclass(frozen=True)
class DistillOptions(Settings):
    """Of ``distill`` alone."""

    preset: str | None = setting(
        None, "published settings such as cifar10-ipc1, which flags and the file override"
    )
    out: Path = setting(
        ..., f"folder for {SET}, {METRICS} and a checkpoint; the same call goes on from it"
    )
    experts: Path | None = setting(
        None,
        "folder of iadd-fast experts, or of MTT's replay_buffer_*.pt; default: trained into "
        "OUT/experts",
    )
    images_per_class: int | None = setting(
        _of(distill, "images_per_class"), "synthetic samples per class; default: the preset's, or 1"
    )
    importance: str = setting(
        _of(distill, "importance"),
        "policy, with options as in adaptive:direction=descent,learning_rate=0.01; or uniform, "
        "paper, prune, similarity, ranked, fisher",
    )


@dataclass(frozen=True)
class EvaluationOptions(Settings):
    """What :func:`~iadd_fast.evaluation.evaluate` takes."""

    set: Path = setting(..., f"the {SET} to evaluate")
    preset: str | None = setting(
        None, "published settings such as cifar10-ipc1, which flags and the file override"
    )
    architectures: list[str] | None = setting(
        None, "network such as resnet18 or convnet:width=32, once each; default: the set's own"
    )
    networks: int = setting(_of(evaluate, "networks"), "fresh networks per method")
    epochs: int = setting(
        _of(evaluate, "epochs"), "epochs on the set and on real images of its size"
    )
    batch_size: int = setting(_of(evaluate, "batch_size"), "images per step")
    baselines: list[str] = setting(
        _of(evaluate, "baselines"), "random, herding or k_center, once each; or none"
    )
    full: bool = setting(_of(evaluate, "full"), "also train on all training data")
    full_epochs: int = setting(_of(evaluate, "full_epochs"), "epochs on all training data")
    baseline_lr: float = setting(
        _of(evaluate, "baseline_lr"), "learning rate wherever real images are trained on"
    )
    augment: str = setting(
        _of(evaluate, "augment"), "DSA families joined by _, dsa, none, or same: as distilled"
    )
    seed: int = setting(_of(evaluate, "seed"), "fixes the networks and what is drawn")
    precision: str = setting(
        _of(evaluate, "precision"), "products in training in float32 or, on a GPU, tf32"
    )
    device: str | None = setting(None, "cpu, cuda, cuda:1; default: cuda where there is one")
    progress: bool = setting(True, "show progress")
    out: Path | None = setting(None, f"folder for {EVALUATION}; default: that of the set")


@dataclass(frozen=True)
class ReportOptions(Settings):
    """Of ``report``."""

    set: Path = setting(..., f"the {SET} to report on")
    evaluation: Path | None = setting(
        None, f"default: {EVALUATION} beside the set, if there is one"
    )
    metrics: Path | None = setting(None, f"default: {METRICS} beside the set, if there is one")
    out: Path = setting(..., "folder for index.html")


@dataclass(frozen=True)
class CompareOptions(Settings):
    """Of ``compare`` alone."""

    contenders: list[str] | None = setting(
        _of(compare, "contenders"), "reference, compiled, module or fused, once each; default: all"
    )
    device: str | None = setting(
        _of(compare, "device"), "cpu, cuda, cuda:1; default: cuda where there is one"
    )
    progress: bool = setting(_of(compare, "progress"), "show progress")
    json: Path | None = setting(None, "file for the result")


@dataclass(frozen=True)
class DemoOptions(Settings):
    """Of ``demo``."""

    out: Path = setting(Path("demo"), "folder for the page and everything it shows")
    progress: bool = setting(True, "show progress")


@command(
    app,
    "experts",
    DataOptions,
    ExpertOptions,
    RunOptions,
    ExpertSettings,
    positional=("data",),
    job="experts",
)
def experts_command(values: Values) -> None:
    """Train teachers on real data."""
    trained = train_experts(
        _data(values), **_part(values, ExpertOptions, RunOptions, ExpertSettings)
    )
    print(f"{len(trained)} experts of {trained.epochs} epochs: {values['out']}")


@command(
    app,
    "distill",
    DataOptions,
    DistillOptions,
    RunOptions,
    DistillSettings,
    positional=("data",),
    job="distill",
)
def distill_command(values: Values) -> None:
    """Distil data into a few samples per class."""
    made = distill(_data(values), **_part(values, DistillOptions, RunOptions, DistillSettings))
    print(made)
    print(f"set: {values['out'] / SET}")


@command(
    app, "evaluate", EvaluationOptions, DataOptions, positional=("set", "data"), job="evaluate"
)
def evaluate_command(values: Values) -> None:
    """Train fresh networks on a set and on real data."""
    options = _part(values, EvaluationOptions)
    path, out = options.pop("set"), options.pop("out")
    del options["preset"]  # its settings are among the others by now
    if options["baselines"] == ["none"]:
        options["baselines"] = ()
    evaluation = evaluate(DistilledSet.load(path), _data(values), **options)
    target = (path.parent if out is None else out) / EVALUATION
    write_json(target, evaluation.to_dict())
    print(evaluation.table())
    print(f"evaluation: {target}")


@command(app, "report", ReportOptions, positional=("set",))
def report_command(values: Values) -> None:
    """Write a page on a set."""
    from iadd_fast.report import write_report  # matplotlib takes a second to import

    path = values["set"]
    metrics = values["metrics"] or _beside(path, METRICS)
    evaluation = values["evaluation"] or _beside(path, EVALUATION)
    page = write_report(
        values["out"],
        DistilledSet.load(path),
        evaluation=None if evaluation is None else read_json(evaluation),
        metrics=metrics,
    )
    print(f"page: {page}")


@command(app, "compare", CompareSettings, CompareOptions)
def compare_command(values: Values) -> None:
    """Time the engines of the meta-gradient on this machine."""
    target = values.pop("json")
    found = compare(**values)
    print(found.table())
    if target is not None:
        write_json(target, found.to_dict())
        print(f"comparison: {target}")


@command(app, "demo", DemoOptions)
def demo_command(values: Values) -> None:
    """Distil handwritten digits and show the result."""
    from iadd_fast.demo import run_demo  # matplotlib takes a second to import

    run_demo(values["out"], progress=values["progress"])


@app.command()
def doctor() -> None:
    """Show versions, devices and backends."""
    print(diagnose())


def _data(values: Values) -> Data:
    options = _part(values, DataOptions)
    return load_data(options.pop("data"), seed=options.pop("data_seed"), **options)


def _part(values: Values, *groups: type[Settings]) -> Values:
    return {entry.name: values[entry.name] for group in groups for entry in fields(group)}


def _beside(path: Path, name: str) -> Path | None:
    other = path.parent / name
    return other if other.is_file() else None
