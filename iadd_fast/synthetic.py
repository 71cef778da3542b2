"""The synthetic set while it is learned: images, labels and inner learning rate with their SGD."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.data import Data
from iadd_fast.seeds import derive, generator
from iadd_fast.settings import DistillSettings

SMOOTHING = 0.1


class SyntheticSet:
    """What the outer steps change, and how: SGD with momentum on images, alpha and soft labels.

    Samples stand class by class (MTT's order). Soft labels are kept as logits; the inner loss sees
    their softmax. alpha takes SGD steps as in MTT, except that one step changes it at most by a
    factor of two and never below the smallest normal number of its dtype: it stays above 0, can
    grow again, and a set with it can be saved.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, classes: int, settings: DistillSettings
    ) -> None:
        self.settings = settings
        self.images = images
        self.hard_labels = labels
        self.lr = torch.tensor(settings.lr_init, dtype=images.dtype, device=images.device)
        self.logits: Tensor | None = None
        if settings.soft_labels:
            smooth = torch.full((len(labels), classes), SMOOTHING / max(1, classes - 1))
            smooth.scatter_(1, labels.cpu()[:, None], 1 - SMOOTHING)
            self.logits = smooth.log().to(images)
        self.average = images.clone() if settings.ema is not None else None
        self._velocity = {
            name: torch.zeros_like(value)
            for name, value in (("images", images), ("lr", self.lr), ("logits", self.logits))
            if value is not None
        }

    @property
    def labels(self) -> Tensor:
        """Class indices, or probabilities for soft labels."""
        return self.hard_labels if self.logits is None else self.logits.softmax(1)

    @property
    def result(self) -> Tensor:
        """The images to hand out: their moving average where there is one."""
        return self.images if self.average is None else self.average

    def step(self, images: Tensor, lr: Tensor, labels: Tensor | None) -> None:
        """One SGD step along these gradients (that of ``labels`` is for the probabilities)."""
        self.images = self.images - self.settings.lr_images * self._momentum("images", images)
        moved = self.lr - self.settings.lr_lr * self._momentum("lr", lr)
        least = (self.lr / 2).clamp_min(torch.finfo(self.lr.dtype).tiny)
        self.lr = torch.minimum(torch.maximum(moved, least), self.lr * 2)
        if self.logits is not None and labels is not None:
            p = self.logits.softmax(1)
            through_softmax = p * (labels - (p * labels).sum(1, keepdim=True))
            velocity = self._momentum("logits", through_softmax)
            self.logits = self.logits - self.settings.lr_labels * velocity
        if self.average is not None and self.settings.ema is not None:
            self.average = self.average.lerp(self.images, 1 - self.settings.ema)

    def _momentum(self, name: str, gradient: Tensor) -> Tensor:
        self._velocity[name] = self.settings.momentum * self._velocity[name] + gradient
        return self._velocity[name]

    def state(self) -> dict[str, Tensor]:
        """Everything that :meth:`load_state` needs to continue bit for bit."""
        state = {f"velocity.{name}": value for name, value in self._velocity.items()}
        state |= {"images": self.images, "labels": self.hard_labels, "lr": self.lr}
        if self.logits is not None:
            state["logits"] = self.logits
        if self.average is not None:
            state["average"] = self.average
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from :meth:`state`."""
        self.images = state["images"].to(self.images)
        self.lr = state["lr"].to(self.lr)
        if self.logits is not None:
            self.logits = state["logits"].to(self.logits)
        if self.average is not None:
            self.average = state["average"].to(self.average)
        self._velocity = {
            name: state[f"velocity.{name}"].to(value) for name, value in self._velocity.items()
        }


def initial_images(
    data: Data, images_per_class: int, initial: str, seed: int
) -> tuple[Tensor, Tensor]:
    """First images ``[classes * images_per_class, ...]`` and their labels, class by class.

    ``"real"``: random training images of each class; ``"kmeans"``: the centres of its k-means
    clusters; ``"noise"``: standard normal. Both are on the CPU.

    Raises:
        ValueError: a class has fewer training images than needed.
    """
    count = data.num_classes * images_per_class
    labels = torch.arange(data.num_classes).repeat_interleave(images_per_class)
    if initial == "noise":
        draw = generator(seed, "initial")
        return torch.randn((count, *data.sample_shape), generator=draw), labels
    check_images_per_class(data, images_per_class)
    chosen = []
    known = data.train.labels.cpu()
    for label in range(data.num_classes):
        members = torch.nonzero(known == label)[:, 0]
        if initial == "real":
            order = torch.randperm(len(members), generator=generator(seed, "initial", label))
            members = members[order[:images_per_class]]
        images = data.train.images[members.to(data.train.images.device)].cpu()
        if initial == "kmeans":
            images = _centres(images, images_per_class, derive(seed, "initial", label))
        chosen.append(images)
    return torch.cat(chosen), labels


def check_images_per_class(data: Data, images_per_class: int) -> None:
    """Raise ``ValueError`` unless every class has that many training images."""
    arguments.whole("images_per_class", images_per_class)
    counts = torch.bincount(data.train.labels.cpu(), minlength=data.num_classes).tolist()
    for name, count in zip(data.class_names, counts, strict=True):
        if count < images_per_class:
            raise ValueError(
                f"images_per_class: got {images_per_class}; class {name!r} has {count} training "
                "images"
            )


def _centres(images: Tensor, count: int, seed: int) -> Tensor:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    flat = images.flatten(1).numpy().astype(np.float64)
    # Three threads or more add up a centre in the order in which they finish.
    with threadpool_limits(1), warnings.catch_warnings():
        # Fewer distinct images than centres: repeated centres are fine to start from.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=1, random_state=seed % 2**32).fit(flat).cluster_centers_
    return torch.from_numpy(found).to(images.dtype).view(-1, *images.shape[1:])
