"""Gradient matching: a distillation whose outer step compares gradients (DC, DSA).

DC: Zhao, Mopuri and Bilen, ICLR 2021, arXiv 2006.05929. DSA: Zhao and Bilen, ICML 2021, 2102.08259.
What is done is ``main.py`` of VICO-UoE/DatasetCondensation; ``docs/method.md`` has the differences.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from iadd_fast.data import Data, Split
from iadd_fast.distillation_run import Distillation, OnValidation
from iadd_fast.matching import Matcher
from iadd_fast.seeds import derive, generator
from iadd_fast.settings import GradientSettings
from iadd_fast.students import Student
from iadd_fast.synthetic import initial_images
from iadd_fast.training import placed, train

#: Images per class -> (updates of the images per network, epochs of the network between two of
#: them): ``get_loops`` of the scripts, "empirically good".
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def loops(images_per_class: int, options: GradientSettings) -> tuple[int, int]:
    """Updates of the images per network and epochs of the network between two of them.

    Raises:
        ValueError: one is not given, and none is published for so many images per class.
    """
    given = options.image_updates, options.network_epochs
    published = LOOPS.get(images_per_class)
    if published is None:
        for name, value in zip(("image_updates", "network_epochs"), given, strict=True):
            if value is None:
                raise ValueError(
                    f"{name}: missing; published only for {', '.join(map(str, LOOPS))} images per "
                    f"class, not for {images_per_class}"
                )
        published = 0, 0
    updates, epochs = (
        value if own is None else own for own, value in zip(given, published, strict=True)
    )
    return updates, epochs


class SyntheticImages:
    """The images while they are learned, class by class, and their SGD; labels and lr stay."""

    def __init__(self, images: Tensor, labels: Tensor, options: GradientSettings) -> None:
        self.options = options
        self.images = images
        self.labels = labels
        # float64, so that the artifact's lr is the number that was given.
        self.lr = torch.tensor(options.lr_net, dtype=torch.float64)
        self._velocity = torch.zeros_like(images)

    @property
    def result(self) -> Tensor:
        """The images to hand out."""
        return self.images

    def step(self, gradient: Tensor) -> None:
        """One step of SGD with momentum."""
        self._velocity = self.options.momentum * self._velocity + gradient
        self.images = self.images - self.options.lr_images * self._velocity

    def state(self) -> dict[str, Tensor]:
        """Everything that :meth:`load_state` needs to continue bit for bit."""
        return {"images": self.images, "velocity": self._velocity, "labels": self.labels}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from :meth:`state`."""
        self.images = state["images"].to(self.images)
        self._velocity = state["velocity"].to(self._velocity)


class GradientMatching(Distillation):
    """A fresh network per outer step, whose gradients on both sets of every class are matched.

    ::

        theta = init()
        repeat image_updates times:
            X <- X - lr_images * momentum( sum_classes dD(g_c(X_c), r_c)/dX )
            train theta on (X, y) for network_epochs epochs, except after the last update

    ``g_c`` and ``r_c`` are the gradients at theta of the mean cross-entropy on the synthetic and on
    ``batch_real`` real images of class c, both under one and the same draw of the augmentation; D
    is :func:`iadd_fast.matching.matching_distance`. The loss that is logged is the mean of D over
    classes and updates. A step in which anything is not finite leaves the set as it was.
    """

    def __init__(
        self,
        data: Data,
        student: Student,
        images_per_class: int,
        options: GradientSettings,
        folder: Path | None,
        device: torch.device,
        preset: str | None = None,
        on_validation: OnValidation | None = None,
    ) -> None:
        self.options = options
        self.updates, self.epochs = loops(images_per_class, options)
        self.matcher = Matcher(student, engine=options.engine, precision=options.precision)
        images, labels = initial_images(data, images_per_class, options.initial, options.seed)
        self.synthetic = SyntheticImages(images.to(device), labels.to(device), options)
        real = placed(data.train.images, device)
        self.real = Split(real, data.train.labels.to(real.device))
        classes = range(data.num_classes)
        self.members = [(self.real.labels == label).nonzero()[:, 0] for label in classes]
        config = {
            "method": "gradient",
            "preset": preset,
            "images_per_class": images_per_class,
        }
        super().__init__(
            data, student, options, self.synthetic, config, folder, device, on_validation
        )

    def move(self) -> tuple[float, bool]:
        """All updates of the images with one fresh network."""
        theta = self.student.init(self._seed("network"), self.device)
        loss = torch.zeros((), device=self.device)
        for update in range(self.updates):
            distance, gradient = self._match(theta, update)
            loss = loss + distance
            self.synthetic.step(gradient)
            if update < self.updates - 1 and self.epochs > 0:
                theta = self._train(theta, update)
        good = bool(loss.isfinite() & self.synthetic.images.isfinite().all())
        return float(loss) / (len(self.members) * self.updates), good

    def _match(self, theta: Tensor, update: int) -> tuple[Tensor, Tensor]:
        """The distance summed over classes and its gradient for all images.

        Several processes divide the classes.
        """
        synthetic = self.synthetic
        own = synthetic.images.split(len(synthetic.images) // len(self.members))
        loss = torch.zeros((), device=self.device)
        gradients = []
        for label, images in enumerate(own):
            if label % self.ranks.size != self.ranks.rank:
                gradients.append(torch.zeros_like(images))
                continue
            found = self.matcher.gradient(
                theta,
                self._real_batch(label, update),
                (images, torch.full((len(images),), label, device=self.device)),
                self.augment,
                self._seed("siamese", update, label),
            )
            loss = loss + found.loss
            gradients.append(found.images)
        loss, gradient = self.ranks.sum([loss, torch.cat(gradients)])
        return loss, gradient

    def _real_batch(self, label: int, update: int) -> tuple[Tensor, Tensor]:
        """At most ``batch_real`` real images of a class, without repetition, and their labels."""
        members = self.members[label]
        draw = generator(self.options.seed, "real", self.iteration, update, label)
        chosen = torch.randperm(len(members), generator=draw)[: self.options.batch_real]
        chosen = members[chosen.to(members.device)]
        real = self.real.subset(chosen).to(self.device)
        return real.images, real.labels

    def _train(self, theta: Tensor, update: int) -> Tensor:
        return train(
            self.student,
            theta,
            self.synthetic.images,
            self.synthetic.labels,
            lr=self.options.lr_net,
            epochs=self.epochs,
            batch_size=self.options.batch_size,
            augment=self.augment,
            seed=self._seed("training", update),
            engine=self.options.engine,
            precision=self.options.precision,
        )

    def _seed(self, *path: int | str) -> int:
        return derive(self.options.seed, *path, self.iteration)

    def advice(self) -> str:
        """The step sizes."""
        options = self.options
        return f"lower lr_images (now {options.lr_images:g}) or lr_net ({options.lr_net:g})"
