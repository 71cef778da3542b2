"""Which classes each synthetic sample helps: influence by the meta-gradient, checked by removal.

With one-hot labels, or any other probabilities y, the loss of an inner step is linear in each row
of y. So ``sum_k y_ik dG/dy_ik`` is the derivative of any function G of theta_J with respect to the
weight of example i in all inner steps, exactly, through the whole training. With
``target = theta_J - s grad G``, no importance weights and the normaliser ``"start"``, the matching
loss has ``dL/dtheta_J = 2 s / ||theta_0 - target||^2 grad G``: one
:func:`iadd_fast.trajectory_gradient` gives dG/dy up to this known factor, by any engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_fast.audit.features import logits
from iadd_fast.audit.material import Material
from iadd_fast.audit.rates import share_interval
from iadd_fast.data import Split
from iadd_fast.evaluation import DISTILLED
from iadd_fast.fused.precision import products_in
from iadd_fast.seeds import derive, generator
from iadd_fast.students import Student
from iadd_fast.training import accuracy
from iadd_fast.unroll import TrajectoryGradient, release, trajectory_gradient

# Fewer leave the networks untrained; more, and first order says less of a removal (measured on
# digits: rank correlation 0.84 at 100 steps, 0.65 at 400).
STEPS = 100
LEAST_STEPS = 50
#: Samples that pass through an unroll in all (networks x classes x steps x batch) before fewer
#: steps are taken.
PASSES = 1_000_000
BATCH = 256
#: Bytes of the parameters of all inner steps that the sweep may hold.
KEPT = 512 * 2**20
HELD_OUT = 1000
CHECKED = 10
_NAMED = 3
# The target is so far away that theta_J - target keeps the digits of the gradient.
_REACH = 1024.0


@dataclass(frozen=True, eq=False)
class Training:
    """Plain SGD on a synthetic set from one initialisation.

    Attributes:
        student: the network. theta: its first parameters ``[P]``.
        images: ``[n, ...]``. labels: probabilities ``[n, classes]``. lr: learning rate.
        steps, batch_size, augment, seed, engine: as :func:`iadd_fast.trajectory_gradient`.
        window: influence is exact through the last ``window`` steps.
    """

    student: Student
    theta: Tensor
    images: Tensor
    labels: Tensor
    lr: float
    steps: int
    window: int
    batch_size: int | None = None
    augment: str | None = None
    seed: int = 0
    engine: str = "auto"

    def arrival(self, labels: Tensor | None = None) -> Tensor:
        """theta_J ``[P]``, with other labels where given."""
        return self._gradient(self.theta + 1.0, self.labels if labels is None else labels, 1).theta

    def without(self, sample: int) -> Tensor:
        """theta_J ``[P]`` of the same training with the weight of one sample set to 0."""
        labels = self.labels.clone()
        labels[sample] = 0.0
        return self.arrival(labels)

    def influence(self, arrival: Tensor, gradient: Tensor) -> Tensor:
        """``dG/d(weight of sample i)`` ``[n]`` (float64) for a G with ``gradient`` at theta_J.

        Args:
            arrival: :meth:`arrival`. gradient: ``dG/dtheta_J [P]``.
        """
        length = float(gradient.double().norm())
        if length == 0.0:
            return torch.zeros(len(self.images), dtype=torch.float64, device=gradient.device)
        scale = _REACH * max(float(arrival.double().norm()), 1e-6) / length
        target = arrival - scale * gradient
        found = self._gradient(target, self.labels, self.window).labels
        assert found is not None, "the labels are probabilities"
        span = float((self.theta - target).double().square().sum())
        return (self.labels.double() * found.double()).sum(1) * (span / (2.0 * scale))

    def _gradient(self, target: Tensor, labels: Tensor, window: int) -> TrajectoryGradient:
        return trajectory_gradient(
            self.student,
            self.theta,
            target,
            self.images,
            labels,
            self.lr,
            steps=self.steps,
            batch_size=self.batch_size,
            augment=self.augment,
            window=window,
            seed=self.seed,
            engine=self.engine,
        )


def class_loss(student: Student, theta: Tensor, images: Tensor, label: int) -> tuple[float, Tensor]:
    """The mean cross-entropy (nats) of images of one class, and its gradient for theta ``[P]``."""
    leaf = theta.detach().requires_grad_(True)
    gradient, total = torch.zeros_like(theta), 0.0
    with products_in("float32", images.device):
        for part in images.split(BATCH):
            labels = torch.full((len(part),), label, device=part.device)
            loss = F.cross_entropy(student.apply(leaf, part), labels, reduction="sum")
            gradient += torch.autograd.grad(loss / len(images), leaf)[0]
            total += float(loss.detach()) / len(images)
    return total, gradient


def class_losses(student: Student, theta: Tensor, parts: list[Tensor]) -> Tensor:
    """The mean cross-entropy (nats) on images of each class ``[classes]``; NaN where none."""
    found = logits(student, theta, torch.cat(parts)).double().log_softmax(1).cpu()
    rows = found.split([len(images) for images in parts])
    return torch.stack([-part[:, label].mean() for label, part in enumerate(rows)])


def influence(material: Material, networks: int = 3) -> dict[str, Any]:
    """Influence of every synthetic sample on the loss of every class, JSON-able.

    ``matrix[i][c]`` is minus the derivative of the mean cross-entropy (nats) on held-out real
    samples of class c with respect to the weight of sample i: to first order, by how much that loss
    rises when the sample is left out. Above 0 the sample helps the class. Mean over fresh networks,
    each trained by plain SGD on the set with its own learning rate and augmentation; the spread is
    the standard deviation over them. How far first order holds is measured: for up to ``CHECKED``
    samples the training is run again with the sample's weight at 0.

    Costs about ``networks x (classes + checked) x steps`` inner steps and sweeps. Steps: ``STEPS``,
    fewer (not below ``LEAST_STEPS``) where more than ``PASSES`` samples would go through unrolls.
    Where the parameters of all steps would take more than ``KEPT`` bytes, the derivative is taken
    through the last ``window`` steps only.
    """
    distilled, device = material.distilled, material.device
    student = material.trained[DISTILLED].student
    classes = distilled.num_classes
    part, parts = held_out(material)
    labels = distilled.labels
    if not labels.is_floating_point():
        labels = F.one_hot(labels, classes)
    images = distilled.images.to(device)
    labels = labels.to(device, images.dtype)
    batch = _batch_size(len(distilled), distilled.config.get("batch_size"))
    per_step = networks * classes * (batch or len(distilled))
    steps = min(STEPS, max(LEAST_STEPS, PASSES // per_step))
    window = max(1, min(steps, KEPT // (student.num_parameters * images.element_size())))

    def training(network: int) -> Training:
        first = derive(material.seed, "influence", network, "init")
        return Training(
            student=student,
            theta=student.init(first, device, images.dtype),
            images=images,
            labels=labels,
            lr=float(distilled.lr),
            steps=steps,
            window=window,
            batch_size=batch,
            augment=distilled.augment,
            seed=derive(material.seed, "influence", network, "train"),
        )

    described = {
        "part": part,
        "held_out": sum(len(images) for images in parts),
        "held_out_by_class": [len(images) for images in parts],
        "steps": steps,
        "window": window,
        "batch_size": batch,
        "lr": float(distilled.lr),
        "augment": distilled.augment,
        "networks": networks,
    }
    try:
        measured = _measured(
            [training(network) for network in range(networks)], parts, material.seed
        )
    finally:
        release(student)
    if measured is None:
        reason = (
            f"plain training with the set's learning rate of {distilled.lr:.4g} diverged from "
            "every initialisation"
        )
        return {"measured": False, "reason": reason, **described}
    return {"measured": True, "first_order": True, **described, **measured}


def held_out(material: Material) -> tuple[Literal["validation", "test"], list[Tensor]]:
    """The part that influence is measured on and its samples by class, ``HELD_OUT`` at most.

    The validation part where there is one, else the test part.
    """
    part: Literal["validation", "test"] = "validation" if len(material.validation) else "test"
    split: Split = material.validation if part == "validation" else material.test
    classes = material.distilled.num_classes
    most = max(1, HELD_OUT // classes)
    labels = split.labels.cpu()
    parts = []
    for label in range(classes):
        members = (labels == label).nonzero()[:, 0]
        draw = generator(material.seed, "influence", "held out", label)
        chosen = members[torch.randperm(len(members), generator=draw)[:most]].sort().values
        parts.append(split.images[chosen.to(split.images.device)])
    return part, parts


def _measured(trainings: list[Training], parts: list[Tensor], seed: int) -> dict[str, Any] | None:
    """What came of all networks that did not diverge; None if all of them did."""
    student, samples = trainings[0].student, len(trainings[0].images)
    arrivals = [training.arrival() for training in trainings]
    kept = [
        (training, arrival)
        for training, arrival in zip(trainings, arrivals, strict=True)
        if bool(arrival.isfinite().all())
    ]
    if not kept:
        return None
    draw = generator(seed, "influence", "checked")
    checked = torch.randperm(samples, generator=draw)[:CHECKED].sort().values.tolist()
    losses = torch.stack([class_losses(student, arrival, parts) for _, arrival in kept])
    removed = torch.stack(
        [
            torch.stack(
                [class_losses(student, training.without(i), parts) - before for i in checked]
            )
            for (training, _), before in zip(kept, losses, strict=True)
        ]
    )
    present = [label for label, images in enumerate(parts) if len(images)]
    matrices = torch.full((len(kept), samples, len(parts)), math.nan, dtype=torch.float64)
    for number, (training, arrival) in enumerate(kept):
        for label in present:
            _, gradient = class_loss(student, arrival, parts[label], label)
            matrices[number, :, label] = -training.influence(arrival, gradient).cpu()
    together = torch.cat([parts[label] for label in present])
    wanted = torch.cat([torch.full((len(parts[c]),), c, device=together.device) for c in present])
    accuracies = [accuracy(student, arrival, together, wanted) for _, arrival in kept]
    own = trainings[0].labels.argmax(1).tolist()
    return {
        "networks_used": len(kept),
        "class_loss": _listed(losses.mean(0)),
        "accuracy": accuracies,
        "matrix": _listed(matrices.mean(0)),
        "spread": _listed(matrices.std(0)) if len(kept) > 1 else None,
        "samples": [_sample(matrices[:, i], i, own[i], present) for i in range(samples)],
        "own_class_first": _own_first(matrices.mean(0), own, present),
        "agreement": _agreement(matrices[:, :, present]),
        "check": _check(matrices[:, checked][:, :, present], removed[:, :, present], checked),
    }


def _sample(values: Tensor, sample: int, own: int, present: list[int]) -> dict[str, Any]:
    """The classes that one sample ``[networks, classes]`` helps and hurts most."""
    mean, networks = values.mean(0), len(values)
    order = sorted(present, key=lambda label: -float(mean[label]))

    def named(label: int) -> dict[str, Any]:
        same = int((values[:, label].sign() == mean[label].sign()).sum())
        return {
            "class": label,
            "mean": _number(mean[label]),
            "spread": _number(values[:, label].std()) if networks > 1 else None,
            "networks_agreeing": same,
        }

    return {
        "sample": sample,
        "label": own,
        "helps": [named(label) for label in order[:_NAMED] if mean[label] > 0],
        "hurts": [named(label) for label in order[::-1][:_NAMED] if mean[label] < 0],
    }


def _own_first(mean: Tensor, own: list[int], present: list[int]) -> dict[str, Any] | None:
    """How many samples help their own class more than any other."""
    asked = [i for i, label in enumerate(own) if label in present]
    if not asked:
        return None
    best = mean.nan_to_num(nan=-math.inf).argmax(1).tolist()
    count = sum(best[i] == own[i] and float(mean[i, own[i]]) > 0 for i in asked)
    low, high = share_interval(count / len(asked), len(asked))
    return {"count": count, "of": len(asked), "low": low, "high": high}


def _agreement(matrices: Tensor) -> float | None:
    """Mean rank correlation of the matrices of two networks."""
    found = [
        rank_correlation(matrices[a].flatten(), matrices[b].flatten())
        for a in range(len(matrices))
        for b in range(a)
    ]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def _check(predicted: Tensor, removed: Tensor, samples: list[int]) -> dict[str, Any]:
    """First order against training again without the sample, by network."""
    found = [
        rank_correlation(one.flatten(), other.flatten())
        for one, other in zip(predicted, removed, strict=True)
    ]
    return {
        "samples": samples,
        "pairs": int(predicted[0].numel()),
        "rank_correlation": found,
        "same_sign": float((predicted.sign() == removed.sign()).double().mean()),
    }


def rank_correlation(one: Tensor, other: Tensor) -> float | None:
    """Spearman's coefficient of two vectors; None where one is constant."""
    from scipy import stats

    if len(one) < 2 or bool((one == one[0]).all()) or bool((other == other[0]).all()):
        return None
    return float(stats.spearmanr(one.numpy(), other.numpy()).statistic)


def _batch_size(samples: int, of_the_run: Any) -> int | None:
    """As the run's inner steps, ``BATCH`` at most; None for all samples."""
    wanted = of_the_run if isinstance(of_the_run, int) else samples
    size = min(wanted, BATCH)
    return None if size >= samples else size


def _listed(values: Tensor) -> list[Any]:
    """Nested lists of four significant digits, None where not finite."""
    if values.ndim > 1:
        return [_listed(row) for row in values]
    return [_number(value) for value in values]


def _number(value: Tensor) -> float | None:
    return float(f"{float(value):.4g}") if bool(value.isfinite()) else None
