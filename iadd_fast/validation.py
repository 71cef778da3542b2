"""How good a synthetic set is while it is learned: networks trained on it, tested on held data."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from iadd_fast.augment import Augmentation
from iadd_fast.distributed import Ranks
from iadd_fast.seeds import derive
from iadd_fast.settings import DistillSettings, GradientSettings
from iadd_fast.students import Student
from iadd_fast.training import accuracy, train_many


def validation_accuracy(
    student: Student,
    synthetic: tuple[Tensor, Tensor],
    lr: float,
    held: tuple[Tensor, Tensor],
    options: DistillSettings | GradientSettings,
    augment: Augmentation | None,
    ranks: Ranks,
    iteration: int,
) -> tuple[float, bool]:
    """The mean accuracy of fresh networks in percent, and whether any of them stayed finite.

    The networks are the same at every iteration, so that scores of two iterations differ by the set
    alone, and are divided over ``ranks``. A diverged one has 0 %.

    Args:
        synthetic, lr: images, labels and the learning rate to train on them with.
        held: images and labels to test on.
        options: how many networks of how many epochs, seed and precision.
        iteration: for the warning.

    Warns:
        UserWarning: networks diverged.
    """
    seeds = [derive(options.seed, "validation", k) for k in range(options.validation_networks)]
    # A row of accuracies and one of networks that stayed finite.
    device = synthetic[0].device
    scores = torch.zeros(2, len(seeds), dtype=torch.float64, device=device)
    own = range(ranks.rank, len(seeds), ranks.size)
    if own:
        first = [derive(seeds[k], "initial") for k in own]
        thetas = train_many(
            student,
            torch.stack([student.init(seed, device) for seed in first]),
            [synthetic],
            seeds=[seeds[k] for k in own],
            lr=lr,
            epochs=options.validation_epochs,
            momentum=0.9,
            weight_decay=5e-4,
            decay=True,
            augment=augment,
            # Rounded weights would be another network than the one that evaluation trains.
            precision="tf32" if options.precision == "tf32" else "float32",
        )
        scores[:, own.start :: own.step] = _scores(student, thetas, held)
    (scores,) = ranks.sum([scores])
    accuracies, finite = scores.tolist()
    diverged = len(seeds) - int(sum(finite))
    if diverged:
        warnings.warn(
            f"{diverged} of {len(seeds)} validation networks diverged after iteration "
            f"{iteration}, trained with learning rate {lr:.4g}; they count as 0 %",
            UserWarning,
            stacklevel=2,
        )
    return sum(accuracies) / len(seeds), diverged < len(seeds)


def _scores(student: Student, thetas: Tensor, held: tuple[Tensor, Tensor]) -> Tensor:
    """The accuracy of each network, and 1 where its parameters are finite, else 0."""
    scores = [accuracy(student, theta, *held) for theta in thetas]
    accuracies = torch.tensor(scores, dtype=torch.float64, device=thetas.device)
    return torch.stack([accuracies, thetas.isfinite().all(1).to(accuracies)])
