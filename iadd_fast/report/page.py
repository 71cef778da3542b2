"""Puts the report together: the numbers of every section, and the page that shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jinja2 import Environment, PackageLoader, StrictUndefined

from iadd_fast import arguments
from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.files import write_atomically, write_json
from iadd_fast.data import Data
from iadd_fast.evaluation_rows import Evaluation
from iadd_fast.metrics import Metrics, read_metrics
from iadd_fast.report.command import distill_command
from iadd_fast.report.pictures import Samples
from iadd_fast.report.sections import (
    accuracy,
    cost,
    explanation,
    privacy,
    provenance,
    representativeness,
    run,
    samples,
    verdict,
)

KIND = "report"
SCHEMA = 1
#: Parts of an audit -> heading of their section.
PARTS = {
    "explanation": "Explainability",
    "representativeness": "Representativeness",
    "privacy": "Privacy",
}
WITHOUT_AUDIT = "this report was written without the data and networks that an audit measures on"


@runtime_checkable
class Audited(Protocol):
    """What is read of :class:`iadd_fast.audit.run.Audit`; a part that is None was not measured."""

    @property
    def evaluation(self) -> Evaluation: ...

    @property
    def explanation(self) -> dict[str, Any] | None: ...

    @property
    def representativeness(self) -> dict[str, Any] | None: ...

    @property
    def privacy(self) -> dict[str, Any] | None: ...

    @property
    def labels(self) -> dict[str, str]: ...

    @property
    def settings(self) -> dict[str, Any]: ...


def write_report(
    folder: Path | str,
    distilled: DistilledSet,
    *,
    audit: Audited | None = None,
    evaluation: Evaluation | Mapping[str, Any] | None = None,
    metrics: Path | str | None = None,
    data: Data | None = None,
    command: str = "",
    report_command: str = "",
) -> Path:
    """Write ``folder/report.json`` and ``folder/index.html``; returns the path of the page.

    The page is self-contained: no script, no network, pictures and plots inline. What was not
    measured is said to be so. ``report.json`` holds every number on the page under the names of its
    sections; the page is made from it. Each file appears whole or not at all, the numbers first.

    Args:
        folder: made when missing.
        distilled: the set the report is about.
        audit: what :func:`iadd_fast.audit.run.audit` returned.
        evaluation: without an audit, what :func:`iadd_fast.evaluation.evaluate` returned, or its
            ``to_dict()``.
        metrics: the ``metrics.jsonl`` of the run.
        data: what the audit measured on; its real samples are shown.
        command: what to run to get the set again; default: the ``iadd-fast distill`` that its
            configuration stands for. report_command: to get the report again.

    Raises:
        FileNotFoundError: there is no file at ``metrics``.
        ValueError: ``evaluation`` or ``metrics`` cannot be read as such; ``audit`` without
            ``data``, or with an ``evaluation`` beside its own; a number that is not finite.
    """
    folder = arguments.path("folder", folder)
    arguments.instance("distilled", distilled, DistilledSet, "a DistilledSet")
    arguments.instance("audit", audit, Audited | None, "an audit or None")
    arguments.instance("data", data, Data | None, "data from load_data, or None")
    arguments.text("command", command)
    arguments.text("report_command", report_command)
    if audit is not None and data is None:
        raise ValueError("data: got none with an audit; takes what it measured on")
    if audit is not None and evaluation is not None:
        raise ValueError("evaluation: got one beside the audit, which has its own; takes one")
    if audit is not None:
        evaluation = audit.evaluation
    if evaluation is not None and not isinstance(evaluation, Evaluation):
        evaluation = Evaluation.from_dict(evaluation)
    course = read_metrics(metrics) if metrics is not None else Metrics([])
    pictures = Samples(distilled, data)
    report = _measure(
        distilled,
        audit,
        evaluation,
        course,
        data,
        pictures,
        command=command or distill_command(distilled),
        report_command=report_command,
    )
    page = _page(report, distilled, pictures)
    path = folder / "index.html"
    write_json(path.with_name("report.json"), report)
    write_atomically(path, lambda temporary: _write_text(temporary, page))
    return path


def _measure(
    distilled: DistilledSet,
    audit: Audited | None,
    evaluation: Evaluation | None,
    course: Metrics,
    data: Data | None,
    pictures: Samples,
    *,
    command: str,
    report_command: str,
) -> dict[str, Any]:
    """``report.json``: the sections by name."""
    labels = {} if audit is None else audit.labels
    settings = {} if audit is None else audit.settings
    parts = {name: None if audit is None else getattr(audit, name) for name in PARTS}
    accuracies = None
    if evaluation is not None and evaluation.rows:
        accuracies = accuracy.measure(evaluation, labels)
    costs = cost.measure(distilled, evaluation, labels, settings.get("distil_seconds", {}))
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "title": f"Distilled set of {distilled.data_name}",
        "verdict": verdict.measure(
            distilled, accuracies, costs, parts["representativeness"], parts["privacy"]
        ),
        "accuracy": accuracies,
        "cost": costs,
        "samples": samples.measure(distilled, pictures),
        **parts,
        "run": run.measure(distilled, course, explained=parts["explanation"] is not None),
        "provenance": provenance.measure(
            distilled,
            data,
            {} if evaluation is None else evaluation.settings,
            settings,
            command=command,
            report_command=report_command,
        ),
    }


def _page(report: Mapping[str, Any], distilled: DistilledSet, pictures: Samples) -> str:
    sections = [
        _section("accuracy", "Accuracy", report, accuracy.view),
        _section("cost", "Time and storage", report, cost.view),
        _section(
            "samples", samples.title(distilled), report, lambda _: samples.view(distilled, pictures)
        ),
    ]
    for part, (name, title) in zip(
        (explanation, representativeness, privacy), PARTS.items(), strict=True
    ):
        sections.append(_section(name, title, report, partial(part.view, samples=pictures)))
    sections.append(_section("run", "The run", report, run.view))
    sections.append(_section("provenance", "Where it comes from", report, provenance.view))
    environment = Environment(
        loader=PackageLoader("iadd_fast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    version = report["provenance"]["report_versions"]["iadd_fast"]
    return environment.get_template("page.html").render(
        title=report["title"],
        about=f"What a distilled set is worth, what it keeps, what it loses and what it may leak: "
        f"measured by iadd_fast {version}.",
        verdict=verdict.view(report["verdict"]),
        sections=sections,
    )


def _section(
    name: str, title: str, report: Mapping[str, Any], view: Callable[[Any], dict[str, Any]]
) -> dict[str, Any]:
    measured = report[name]
    absent = WITHOUT_AUDIT if name in PARTS else "this report was written without an evaluation"
    return {
        "name": name,
        "title": title,
        "view": None if measured is None else view(measured),
        "absent": absent,
    }


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
