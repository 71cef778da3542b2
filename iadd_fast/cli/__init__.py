"""The command line: the Python calls under the same names, from flags or a TOML file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import iadd_fast.cli.exchange
import iadd_fast.cli.plan
import iadd_fast.cli.report
import iadd_fast.cli.tune  # noqa: F401 - each registers its command
from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.files import check_writable, refuse_link, remove_leftovers, write_json
from iadd_fast.cli.common import (
    EVALUATION,
    METRICS,
    NETWORKS,
    SET,
    DataOptions,
    RunOptions,
    app,
    data_of,
    of,
    part,
)
from iadd_fast.comparison import CompareSettings, compare
from iadd_fast.distillation import distill
from iadd_fast.distributed import Ranks
from iadd_fast.doctor import diagnose
from iadd_fast.evaluation import evaluate
from iadd_fast.experts import train_experts
from iadd_fast.options import Values, command, printable
from iadd_fast.settings import METHODS, ExpertSettings, Settings, setting

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    warnings.formatwarning = lambda message, *_, **__: (
        f"iadd-fast: warning: {printable(str(message))}\n"
    )
    app()


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

    method: str | None = setting(
        of(distill, "method"),
        f"{' or '.join(METHODS)} matching; default: the preset's, or {next(iter(METHODS))}",
    )
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
        of(distill, "images_per_class"),
        "synthetic samples per class; default: the preset's, or 1",
    )
    importance: str = setting(
        of(distill, "importance"),
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
    networks: int = setting(of(evaluate, "networks"), "fresh networks per method")
    epochs: int = setting(
        of(evaluate, "epochs"), "epochs on the set and on real images of its size"
    )
    batch_size: int = setting(of(evaluate, "batch_size"), "images per step")
    baselines: list[str] = setting(
        of(evaluate, "baselines"), "random, herding or k_center, once each; or none"
    )
    full: bool = setting(of(evaluate, "full"), "also train on all training data")
    full_epochs: int = setting(of(evaluate, "full_epochs"), "epochs on all training data")
    baseline_lr: float = setting(
        of(evaluate, "baseline_lr"), "learning rate wherever real images are trained on"
    )
    augment: str = setting(
        of(evaluate, "augment"),
        "DSA families joined by _, dsa, none, or same: as distilled",
    )
    seed: int = setting(of(evaluate, "seed"), "fixes the networks and what is drawn")
    precision: str = setting(
        of(evaluate, "precision"), "products in training in float32 or, on a GPU, tf32"
    )
    device: str | None = setting(None, "cpu, cuda, cuda:1; default: cuda where there is one")
    progress: bool = setting(True, "show progress")
    out: Path | None = setting(
        None,
        f"folder for {EVALUATION} and the {NETWORKS} trained, from which a stopped call goes on; "
        "default: that of the set",
    )


@dataclass(frozen=True)
class CompareOptions(Settings):
    """Of ``compare`` alone."""

    contenders: list[str] | None = setting(
        of(compare, "contenders"),
        "reference, compiled, module or fused, once each; default: all",
    )
    device: str | None = setting(
        of(compare, "device"), "cpu, cuda, cuda:1; default: cuda where there is one"
    )
    progress: bool = setting(of(compare, "progress"), "show progress")
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
    parallel=True,
)
def experts_command(values: Values) -> None:
    """Train teachers on real data."""
    trained = train_experts(
        data_of(values), **part(values, ExpertOptions, RunOptions, ExpertSettings)
    )
    if Ranks.current().first:
        print(f"{len(trained)} experts of {trained.epochs} epochs: {values['out']}")


@command(
    app,
    "distill",
    DataOptions,
    DistillOptions,
    RunOptions,
    positional=("data",),
    job="distill",
    methods=METHODS,
    parallel=True,
)
def distill_command(values: Values) -> None:
    """Distil data into a few samples per class."""
    settings = {entry.name for group in METHODS.values() for entry in fields(group)}
    options = part(values, DistillOptions, RunOptions)
    options |= {name: value for name, value in values.items() if name in settings}
    made = distill(data_of(values), **options)
    if Ranks.current().first:
        print(made)
        print(f"set: {values['out'] / SET}")


@command(
    app, "evaluate", EvaluationOptions, DataOptions, positional=("set", "data"), job="evaluate"
)
def evaluate_command(values: Values) -> None:
    """Train fresh networks on a set and on real data."""
    options = part(values, EvaluationOptions)
    path, out = options.pop("set"), options.pop("out")
    del options["preset"]  # its settings are among the others by now
    if options["baselines"] == ["none"]:
        options["baselines"] = ()
    folder = path.parent if out is None else out
    check_writable("out", folder)
    evaluation = evaluate(
        DistilledSet.load(path), data_of(values), keep=refuse_link(folder / NETWORKS), **options
    )
    target = folder / EVALUATION
    remove_leftovers(target)
    write_json(target, evaluation.to_dict())
    print(evaluation.table())
    print(f"evaluation: {target}")


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
