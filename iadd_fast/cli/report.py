"""``iadd-fast report``: a page on a set, measured on the data where that is given."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.files import check_writable, read_json, refuse_link
from iadd_fast.audit.names import names_of
from iadd_fast.cli.common import EVALUATION, METRICS, NETWORKS, SET, DataOptions, app, data_of, of
from iadd_fast.data import Data
from iadd_fast.evaluation import evaluate
from iadd_fast.options import Values, command
from iadd_fast.settings import Settings, setting

#: Options of the audit under their own names.
MEASURED = (
    "networks",
    "epochs",
    "batch_size",
    "full_epochs",
    "baseline_lr",
    "seed",
    "precision",
    "device",
    "progress",
)


@dataclass(frozen=True)
class ReportOptions(Settings):
    """Of ``report``."""

    set: Path = setting(..., f"the {SET} to report on")
    out: Path = setting(..., "folder for index.html and report.json; a stopped call goes on there")
    data: str | None = setting(
        None,
        "what it was distilled from, as distill takes it; without it the page shows only what lies "
        "beside the set",
    )
    beside: list[Path] | None = setting(
        None, "another set of the same data and size to compare with, once each"
    )
    slices: Path | None = setting(
        None, "CSV with one column for each slice and one row for each test sample"
    )
    evaluation: Path | None = setting(
        None, f"without data: default {EVALUATION} beside the set, if there is one"
    )
    metrics: Path | None = setting(None, f"default: {METRICS} beside the set, if there is one")
    architectures: list[str] | None = setting(
        None, "network such as resnet18 or convnet:width=32, once each; default: the set's own"
    )
    networks: int = setting(of(evaluate, "networks"), "fresh networks per method")
    epochs: int = setting(
        of(evaluate, "epochs"), "epochs on the set and on real images of its size"
    )
    batch_size: int = setting(of(evaluate, "batch_size"), "images per step")
    full_epochs: int = setting(of(evaluate, "full_epochs"), "epochs on all training data")
    baseline_lr: float = setting(
        of(evaluate, "baseline_lr"), "learning rate wherever real images are trained on"
    )
    seed: int = setting(of(evaluate, "seed"), "fixes the networks and what is drawn")
    precision: str = setting(
        of(evaluate, "precision"), "products in training in float32 or, on a GPU, tf32"
    )
    device: str | None = setting(None, "cpu, cuda, cuda:1; default: cuda where there is one")
    progress: bool = setting(True, "show progress")


@command(app, "report", DataOptions, ReportOptions, positional=("set",))
def report_command(values: Values) -> None:
    """Write a page and report.json on a set."""
    # matplotlib and what measures take a second to import
    from iadd_fast.audit import audit
    from iadd_fast.report import write_report

    path, out = values["set"], values["out"]
    distilled = DistilledSet.load(path)
    metrics = values["metrics"] or _beside(path, METRICS)
    if values["data"] is None:
        for name in ("beside", "slices", "architectures"):
            if values[name]:
                raise ValueError(f"{name}: needs --data, on which it is measured")
        evaluation = values["evaluation"] or _beside(path, EVALUATION)
        page = write_report(
            out,
            distilled,
            evaluation=None if evaluation is None else read_json(evaluation),
            metrics=metrics,
        )
    else:
        if values["evaluation"] is not None:
            raise ValueError("evaluation: got a file and --data; the report measures anew on data")
        check_writable("out", out)
        data = data_of(values)
        others = [DistilledSet.load(other) for other in values["beside"] or ()]
        measured = audit(
            distilled,
            data,
            values["architectures"],
            beside=dict(zip(names_of(others), others, strict=True)),
            slices=_slices(values["slices"], data),
            metrics=metrics,
            keep=refuse_link(out / NETWORKS),
            **{name: values[name] for name in MEASURED},
        )
        page = write_report(
            out,
            distilled,
            audit=measured,
            data=data,
            metrics=metrics,
            report_command=_command(values),
        )
    print(f"page: {page}")
    print(f"numbers: {page.parent / 'report.json'}")


def _slices(path: Path | None, data: Data) -> dict[str, Any] | None:
    from iadd_fast.audit.slices import read_slices

    if path is None or data.test is None:
        return None
    return read_slices(path, len(data.test), data.test_rows)


def _command(values: Values) -> str:
    """The command that measures all of it again."""
    words = ["iadd-fast", "report", str(values["set"])]
    defaults = {
        entry.name: entry.default
        for group in (DataOptions, ReportOptions)
        for entry in fields(group)
    }
    for name, default in defaults.items():
        value = values[name]
        if name in ("set", "progress", "device") or value == default or value is None:
            continue
        for one in value if isinstance(value, list) else [value]:
            words += ["--" + name.replace("_", "-"), str(one)]
    return shlex.join(words)


def _beside(path: Path, name: str) -> Path | None:
    other = path.parent / name
    return other if other.is_file() else None
