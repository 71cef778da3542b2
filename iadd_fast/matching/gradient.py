"""How far a synthetic batch's gradient is from a real batch's, and which way its images move."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_fast.augment import Augmentation
from iadd_fast.fused.network import why_not
from iadd_fast.fused.precision import check_tf32, products_in
from iadd_fast.matching.distance import matching_distance, matching_distance_gradient
from iadd_fast.matching.fused import FusedGradients
from iadd_fast.memory import Done, attempt, going_on, nothing_helps
from iadd_fast.students import Student

ENGINES = ("auto", "fused", "plain")


@dataclass(frozen=True)
class MatchingGradient:
    """loss: the distance D of the two gradients, a scalar. images: dD/d(synthetic images)."""

    loss: Tensor
    images: Tensor


class Matcher:
    """Distances of gradients and their gradients for the synthetic images, of one student.

    With ``g(X)`` the gradient of the mean cross-entropy for theta on the synthetic images and ``r``
    that on the real ones, a call gives ``D(g(X), r)`` (:func:`matching_distance`) and its gradient
    for ``X``. As D depends on X through g alone, that is ``d<g(X), c>/dX`` with ``c = dD/dg`` held
    fixed: the derivative of the images' gradient along c.

    Args:
        student: the network.
        engine: ``"plain"``: autograd with double backward, the definition, for any student;
            ``"fused"``: c in closed form, then the passes of the fused trajectory sweep, equal up
            to rounding, for ConvNets with instance norm; ``"auto"``: fused where it applies.
        precision: of products, ``"float32"`` or on a GPU ``"tf32"``.

    Raises:
        ValueError: an unknown engine, or engine fused where it does not apply.
    """

    def __init__(
        self, student: Student, *, engine: str = "auto", precision: str = "float32"
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine: got {engine!r}; takes one of {', '.join(ENGINES)}")
        reason = why_not(student)
        if engine == "fused" and reason is not None:
            raise ValueError(f"engine: got 'fused'; {reason}")
        self.student = student
        self.precision = precision
        self.engine = "fused" if engine != "plain" and reason is None else "plain"
        self._fused = FusedGradients(student) if self.engine == "fused" else None

    def gradient(
        self,
        theta: Tensor,
        real: tuple[Tensor, Tensor],
        synthetic: tuple[Tensor, Tensor],
        augment: Augmentation | None = None,
        seed: int = 0,
    ) -> MatchingGradient:
        """The distance, and its gradient for the synthetic images.

        Args:
            theta: parameters ``[P]``.
            real, synthetic: images ``[N, ...]`` and labels int64 ``[N]``, within the student's
                classes (not checked); dtypes and device of ``theta``.
            augment: siamese (DSA, 2102.08259): one family with one set of parameters for every
                image of both batches. seed: fixes it.

        Raises:
            ValueError: theta of another student, or precision tf32 off a GPU.
            OutOfMemory: memory ran out and no smaller way is left; names the settings to lower.

        Warns:
            UserWarning: memory ran out in engine fused, which goes on with fewer samples at once
                (the same results up to rounding).
        """
        self.student.check_theta(theta)
        check_tf32(self.precision, theta)
        siamese = None if augment is None else replace(augment, shared=True)
        real_images, images = real[0], synthetic[0].detach()
        if siamese is not None:
            real_images = siamese(real_images, seed)
            images = images.clone().requires_grad_(True)
        inputs = images if siamese is None else siamese(images, seed)
        with products_in(self.precision, theta.device):
            step = self._plain if self._fused is None else self._closed
            run = functools.partial(
                step, theta.detach(), (real_images, real[1]), (inputs.detach(), synthetic[1])
            )
            loss, d_inputs = self._within_memory(run, theta, len(real_images), len(images))
        if siamese is not None:
            (d_inputs,) = torch.autograd.grad(inputs, images, d_inputs)
        return MatchingGradient(loss, d_inputs)

    def _within_memory(
        self, run: Callable[[], tuple[Tensor, Tensor]], theta: Tensor, real: int, synthetic: int
    ) -> tuple[Tensor, Tensor]:
        """``run()``, in engine fused with fewer samples at once until memory does."""
        what = f"gradient matching, {real} real and {synthetic} synthetic images"
        fused = self._fused
        while True:
            outcome = attempt(run, theta.device, None if fused is None else fused.let_go)
            if isinstance(outcome, Done):
                return outcome.value
            change = None if fused is None else fused.lower(theta, max(real, synthetic))
            if change is None:
                lower = [f"batch_real: got {real}; try {max(1, real // 2)}"]
                lower.append(f"images_per_class: got {synthetic}; try {max(1, synthetic // 2)}")
                if fused is None and why_not(self.student) is None:
                    lower.insert(0, "engine: got 'plain'; try 'fused'")
                raise nothing_helps(what, outcome, lower)
            before, now = change
            going_on(
                what,
                outcome,
                f"with {now} samples through the network at once instead of {before} (the same up "
                "to rounding)",
                f"batch_real={now}",
            )

    def _plain(
        self, theta: Tensor, real: tuple[Tensor, Tensor], synthetic: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        theta, inputs = theta.requires_grad_(True), synthetic[0].requires_grad_(True)

        def gradient(images: Tensor, labels: Tensor, twice: bool) -> Tensor:
            loss = F.cross_entropy(self.student.apply(theta, images), labels)
            return torch.autograd.grad(loss, theta, create_graph=twice)[0]

        wanted = gradient(*real, twice=False)
        loss = matching_distance(self.student, gradient(inputs, synthetic[1], twice=True), wanted)
        (d_inputs,) = torch.autograd.grad(loss, inputs)
        return loss.detach(), d_inputs

    @torch.no_grad()
    def _closed(
        self, theta: Tensor, real: tuple[Tensor, Tensor], synthetic: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        assert self._fused is not None
        wanted, gradient = self._fused.gradients(theta, real, synthetic)
        loss, direction = matching_distance_gradient(self.student, gradient, wanted)
        return loss, self._fused.along(direction)
