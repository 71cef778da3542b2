"""Diagonal Fisher information: what an error in a parameter costs the network's function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from iadd_fast import arguments
from iadd_fast.importance.policy import Importance, Segment, Setting, check_bounds
from iadd_fast.seeds import generator

SAMPLES = 256
CHUNK = 16


def fisher_information(setting: Setting, theta: Tensor) -> Tensor:
    """Diagonal Fisher information of the classifier at ``theta`` ``[P]``.

    ``F_p = E_x E_{y ~ p(y|x, theta)} (d log p(y|x, theta) / d theta_p)^2``, the expectation over
    256 training samples and one label drawn from the network's own prediction for each.

    Raises:
        ValueError: the network's predictions or gradients there are not finite.
    """
    student = setting.student
    draw = generator(setting.seed, "fisher")
    count = min(SAMPLES, setting.images.shape[0])
    chosen = torch.randperm(setting.images.shape[0], generator=draw)[:count]
    images = setting.images[chosen.to(setting.images.device)].to(setting.device, setting.dtype)
    with torch.no_grad():
        logits = torch.cat([student.apply(theta, part) for part in images.split(CHUNK)])
        probabilities = logits.softmax(1).double().cpu()
    _check_finite(probabilities)
    labels = torch.multinomial(probabilities, 1, generator=draw)[:, 0].to(images.device)

    def loss(parameters: Tensor, image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(student.apply(parameters, image[None]), label[None])

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))
    total = torch.zeros_like(theta)
    for part, drawn in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
        total += per_sample(theta, part, drawn).square().sum(0)
    _check_finite(total)
    return total / count


def _check_finite(values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError(
            "theta: has no Fisher information, for its predictions or their gradients are not "
            "finite: this expert is too large for its dtype; train it with a smaller learning rate"
        )


class Fisher(Importance):
    """Fixed weights: the tempered diagonal Fisher information of the teacher at each target.

    ``v = w^2`` proportional to ``F^power``, mean 1 and clamped to [minimum, maximum]; once per
    (expert, epoch), kept. To second order ``0.5 sum F_p e_p^2`` is the change in the network's
    predictions (in nats) that an error e in its parameters causes. Where F is 0 throughout (a
    dead or saturated network) v is 1.

    Args:
        power: temper, 0 is uniform, 1 the Fisher information itself.
        minimum, maximum: bounds on v before it is divided by its mean.
    """

    def __init__(self, power: float = 0.5, minimum: float = 0.05, maximum: float = 20.0) -> None:
        self.power = arguments.number("power", power, above=0)
        self.minimum, self.maximum = check_bounds(minimum, maximum)

    def prepare(self, setting: Setting) -> None:
        self._setting = setting
        self._known: dict[tuple[int, int], Tensor] = {}
        self._last: Tensor | None = None

    def weight(self, segment: Segment) -> Tensor:
        key = (segment.expert, segment.start_epoch)
        if key not in self._known:
            value = fisher_information(self._setting, segment.target).pow(self.power)
            value = (value / value.mean().clamp_min(1e-30)).clamp(self.minimum, self.maximum)
            self._known[key] = (value / value.mean()).sqrt()
        self._last = self._known[key]
        return self._last

    def current(self) -> Tensor | None:
        """The weight of the last segment."""
        return self._last
