"""Trajectory matching: a distillation whose outer step follows a teacher (MTT, IADD)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iadd_fast.artifacts import DistilledSet, Experts
from iadd_fast.data import Data
from iadd_fast.distillation_run import Distillation, OnValidation, Stateful
from iadd_fast.importance import Importance, Segment, Setting
from iadd_fast.importance.record import loss_shares, weight_record
from iadd_fast.seeds import derive, generator
from iadd_fast.settings import DistillSettings
from iadd_fast.students import Student
from iadd_fast.synthetic import SyntheticSet, initial_images
from iadd_fast.unroll import (
    TrajectoryGradient,
    WeightFunction,
    release,
    trajectory_gradients,
)

_Matched = tuple[Segment, Tensor | WeightFunction | None, TrajectoryGradient]


class TrajectoryMatching(Distillation):
    """Images, alpha, importance weights (and soft labels) move along the exact meta-gradient."""

    def __init__(
        self,
        data: Data,
        experts: Experts,
        student: Student,
        importance: Importance,
        images_per_class: int,
        options: DistillSettings,
        folder: Path | None,
        device: torch.device,
        preset: str | None = None,
        on_validation: OnValidation | None = None,
    ) -> None:
        self.options = options
        self.experts = experts
        self.importance = importance
        self._matched: list[_Matched] = []
        images, labels = initial_images(data, images_per_class, options.initial, options.seed)
        self.synthetic = SyntheticSet(
            images.to(device), labels.to(device), data.num_classes, options
        )
        importance.prepare(
            Setting(
                student,
                data.train.images,
                data.train.labels,
                device,
                images.dtype,
                derive(options.seed, "importance"),
            )
        )
        config = {
            "preset": preset,
            "images_per_class": images_per_class,
            "importance": importance.describe(),
        }
        super().__init__(
            data, student, options, self.synthetic, config, folder, device, on_validation
        )

    def run(
        self, progress: bool = True, should_stop: Callable[[], bool] | None = None
    ) -> DistilledSet:
        """As the frame's, letting go of the engine's buffers at the end."""
        try:
            return super().run(progress, should_stop)
        finally:
            release(self.student)

    def stateful(self) -> dict[str, Stateful]:
        """The set and the importance policy."""
        return {**super().stateful(), "importance": self.importance}

    def move(self) -> tuple[float, bool]:
        """Match ``trajectories`` segments and move; or not, when the loss is of no use."""
        segments = [self._draw_segment(k) for k in range(self.options.trajectories)]
        weights = [self.importance.weight(segment) for segment in segments]
        results = self._match(segments, weights)
        self._matched = [*zip(segments, weights, results, strict=True)]
        loss = sum(float(result.loss) for result in results) / len(results)
        good = loss <= self.options.max_loss and all(_finite(result) for result in results)
        if good:
            mean = _mean_of(results)
            self.synthetic.step(mean("images"), mean("lr"), mean("labels"))
            self.importance.update(mean("weight"))
        return loss, good

    def _draw_segment(self, number: int) -> Segment:
        options = self.options
        draw = generator(options.seed, "segment", self.iteration, number)

        def below(count: int) -> int:
            return int(torch.randint(count, (), generator=draw))

        expert = below(len(self.experts))
        last = options.last_start_epoch(self.iteration)
        start = options.min_start_epoch + below(last - options.min_start_epoch + 1)
        return Segment(
            expert,
            start,
            self.experts.snapshot(expert, start, self.device),
            self.experts.snapshot(expert, start + options.expert_epochs, self.device),
        )

    def _match(
        self, segments: list[Segment], weights: list[Tensor | WeightFunction | None]
    ) -> list[TrajectoryGradient]:
        options = self.options
        return trajectory_gradients(
            self.student,
            [segment.start for segment in segments],
            [segment.target for segment in segments],
            self.synthetic.images,
            self.synthetic.labels,
            self.synthetic.lr,
            steps=options.steps,
            weights=weights,
            normaliser=self.importance.normaliser,
            batch_size=options.batch_size,
            augment=self.augment,
            window=options.window,
            seeds=[derive(options.seed, "inner", self.iteration, k) for k in range(len(segments))],
            engine=options.engine,
            precision=options.precision,
            memory_budget=options.memory_budget,
            compile=options.compile,
        )

    def weight(self) -> Tensor | None:
        """The policy's persistent weight, where it keeps one."""
        return self.importance.current()

    def logged(self) -> dict[str, Any]:
        """The spread of the weights and how many of them are 0."""
        weight = self.importance.current()
        pruned = {} if weight is None else {"pruned": int((weight == 0).sum())}
        return {"weight_spread": self._spread(), **pruned}

    def _spread(self) -> float:
        """Standard deviation of v = w^2 over its mean: 0 for uniform weights."""
        weight = self.importance.current()
        if weight is None:
            return 0.0
        value = weight.double().square()
        return float(value.std(correction=0) / value.mean().clamp_min(1e-300))

    def logged_at_validation(self) -> dict[str, Any]:
        """The weights by layer and filter, and which layers carry the loss of this step."""
        weight = self.importance.current()
        shares = loss_shares(
            self.student,
            [result.theta for _, _, result in self._matched],
            [segment.target for segment, _, _ in self._matched],
            [
                own(result.theta, segment.start, segment.target) if callable(own) else own
                for segment, own, result in self._matched
            ],
        )
        return shares if weight is None else weight_record(self.student, weight) | shares

    def shown(self, row: dict[str, Any]) -> dict[str, str]:
        """alpha and the spread of the weights."""
        return {"alpha": f"{row['lr']:.4g}", "spread": f"{row['weight_spread']:.2f}"}

    def advice(self) -> str:
        """The step sizes and the bound of the loss."""
        options = self.options
        return (
            f"lower lr_images (now {options.lr_images:g}), lr_lr ({options.lr_lr:g}) or lr_init "
            f"({options.lr_init:g}), or raise max_loss ({options.max_loss:g})"
        )


def _mean_of(results: list[TrajectoryGradient]) -> Callable[[str], Any]:
    def mean(name: str) -> Tensor | None:
        values = [getattr(result, name) for result in results]
        return None if values[0] is None else torch.stack(values).mean(0)

    return mean


def _finite(result: TrajectoryGradient) -> bool:
    parts = (result.loss, result.images, result.labels, result.lr, result.weight)
    return all(bool(part.isfinite().all()) for part in parts if part is not None)
