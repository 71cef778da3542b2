"""``audit``: everything that a report says of a set, measured on the set, the data and networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from iadd_fast import arguments
from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit.explanation import explain
from iadd_fast.audit.material import Material
from iadd_fast.audit.names import UNKNOWN, method_name
from iadd_fast.audit.privacy import privacy
from iadd_fast.audit.representativeness import represent
from iadd_fast.audit.slices import check_slices
from iadd_fast.data import Data, Split
from iadd_fast.devices import resolve_device
from iadd_fast.evaluation import DISTILLED, FULL, evaluate
from iadd_fast.evaluation_inputs import space_of
from iadd_fast.evaluation_networks import TrainedNetworks
from iadd_fast.evaluation_rows import Evaluation
from iadd_fast.students import Student


@dataclass(frozen=True, eq=False)
class Audit:
    """What :func:`audit` measured; every value is JSON-able.

    Attributes:
        evaluation: accuracies of the set, those beside it, real images and the full data.
        explanation: what the importance weights say, whether it holds, and what each sample does.
        representativeness: what of the real data the set keeps and what it loses.
        privacy: how near the set is to training records, and what an attacker learns.
        labels: the method's name in the evaluation -> what a page calls it.
        settings: of the audit.
    """

    evaluation: Evaluation
    explanation: dict[str, Any]
    representativeness: dict[str, Any]
    privacy: dict[str, Any]
    labels: dict[str, str]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All of it as one JSON-able mapping."""
        return {
            "evaluation": self.evaluation.to_dict(),
            "explanation": self.explanation,
            "representativeness": self.representativeness,
            "privacy": self.privacy,
            "labels": dict(self.labels),
            "settings": dict(self.settings),
        }


def audit(
    distilled: DistilledSet,
    data: Data,
    architectures: Sequence[str | Student] | str | Student | None = None,
    *,
    beside: Mapping[str, DistilledSet] | None = None,
    slices: Mapping[str, Sequence[Any]] | None = None,
    metrics: str | Path | None = None,
    networks: int = 5,
    epochs: int = 1000,
    batch_size: int = 256,
    full_epochs: int = 50,
    baseline_lr: float = 0.01,
    seed: int = 0,
    precision: str = "float32",
    device: torch.device | str | None = None,
    progress: bool = True,
    keep: str | Path | None = None,
) -> Audit:
    """Measure what the set is worth, what it keeps, what it loses and what it may leak.

    Fresh networks are trained by the protocol of :func:`iadd_fast.evaluate` on the set, on the sets
    beside it, on real images of the same number (random, herding, k-centre) and on all training
    data. Explanation, representativeness and privacy are then measured on the networks of the first
    architecture; what each does and does not show is said by
    :func:`~iadd_fast.audit.explanation.explain`,
    :func:`~iadd_fast.audit.representativeness.represent` and
    :func:`~iadd_fast.audit.privacy.privacy`.

    Args:
        distilled: the set. data: what it was distilled from.
        architectures: as :func:`iadd_fast.evaluate` takes them; default: the set's own student.
        beside: other sets of the same data, size and transform, by the name they get.
        slices: name -> one value for each test sample, in the order of ``data.test``.
        metrics: the ``metrics.jsonl`` of the run; without it the course of the run is not known.
        networks, epochs, batch_size, full_epochs, baseline_lr, seed, precision, device: as
            :func:`iadd_fast.evaluate`.
        keep: folder for the trained networks; the same call takes them from there.

    Raises:
        FileNotFoundError: there is no file at ``metrics``.
        ValueError: as :func:`iadd_fast.evaluate`; fewer than two test records; a slice has another
            length than the test part; a set of ``beside`` is of another size; a network trained on
            all training data diverged, in whose features the audit measures.
    """
    arguments.instance("distilled", distilled, DistilledSet, "a DistilledSet")
    arguments.instance("data", data, Data, "data from load_data")
    beside = {} if beside is None else beside
    beside = dict(arguments.instance("beside", beside, Mapping, "sets by name"))
    slices = {} if slices is None else slices
    arguments.instance("slices", slices, Mapping, "values by name")
    for name, other in beside.items():
        arguments.instance("beside", other, DistilledSet, "DistilledSets")
        if len(other) != len(distilled):
            raise ValueError(
                f"beside: {name!r} has {len(other)} samples; the distilled set has {len(distilled)}"
            )
    if data.test is not None:
        check_slices(slices, len(data.test))
        if len(data.test) < 2:
            raise ValueError("data: has one test record; an audit compares with at least two")
    if metrics is not None and not arguments.path("metrics", metrics).is_file():
        raise FileNotFoundError(f"metrics: no file at {metrics}")
    where = resolve_device(device)
    trained: list[TrainedNetworks] = []
    evaluation = evaluate(
        distilled,
        data,
        architectures,
        beside=beside,
        networks=networks,
        epochs=epochs,
        batch_size=batch_size,
        full_epochs=full_epochs,
        baseline_lr=baseline_lr,
        seed=seed,
        precision=precision,
        device=where,
        progress=progress,
        keep=keep,
        on_trained=trained.append,
    )
    material = _material(distilled, data, beside, trained, where, seed)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "explanation": lambda: explain(material, metrics),
        "representativeness": lambda: represent(material, slices),
        "privacy": lambda: privacy(material),
    }
    parts: dict[str, dict[str, Any]] = {}
    with tqdm(total=len(measures), desc="audit", unit="part", disable=not progress) as bar:
        for name, measure in measures.items():
            bar.set_description(f"audit: {name}")
            parts[name] = measure()
            bar.update()
    own = method_name(distilled)
    labels = {DISTILLED: own if own == UNKNOWN else f"distilled set: {own}"}
    labels |= {name: name for name in beside}
    settings = {
        "architecture": trained[0].architecture,
        "networks": networks,
        "seed": seed,
        "slices": sorted(slices or {}),
        "distil_seconds": {name: other.summary.get("seconds") for name, other in beside.items()},
    }
    return Audit(evaluation=evaluation, labels=labels, settings=settings, **parts)


def _material(
    distilled: DistilledSet,
    data: Data,
    beside: Mapping[str, DistilledSet],
    trained: Sequence[TrainedNetworks],
    device: torch.device,
    seed: int,
) -> Material:
    to_space = space_of(distilled, data)

    def part(split: Split) -> Split:
        images = to_space(split.images) if len(split) else split.images
        return Split(images, split.labels).to(device)

    assert data.test is not None, "evaluate has refused data without a test part"
    own = {entry.method: entry for entry in trained if entry.student is trained[0].student}
    wanted = (DISTILLED, "random", FULL, *beside)
    diverged = int((~own[FULL].thetas.isfinite().all(1)).sum())
    if diverged:
        raise ValueError(
            f"baseline_lr: {diverged} of {len(own[FULL].thetas)} networks trained with it on all "
            "training data diverged, and the audit measures in their features; lower it"
        )
    return Material(
        distilled=distilled,
        data=data,
        train=part(data.train),
        validation=part(data.validation),
        test=part(data.test),
        trained={name: own[name] for name in wanted},
        device=device,
        seed=seed,
        beside=beside,
    )
