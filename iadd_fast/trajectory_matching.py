"""Trajectory matching: a distillation whose outer step follows a teacher (MTT, IADD)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iadd_fast.artifacts import DistilledSet, Experts
from iadd_fast.artifacts.trajectories import fingerprint_of
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
            "experts": fingerprint_of(experts),
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
        """Match ``trajectories`` segments and move; or not, when the loss is of no use.

        Of no use: a loss that is not finite, above ``max_loss`` or exactly 0 (weights of 0 and a
        student that has arrived leave nothing to follow), a gradient that is not finite, and a
        segment in which the teacher stands still, which leaves nothing to divide by.

        Several processes divide the segments; the means over all of them are the same on each.
        """
        segments = [self._draw_segment(k) for k in self._own_segments()]
        if not self.importance.begun:
            # On every process from the same one, also after a step that came to nothing.
            self.importance.weight(self._draw_segment(0))
        weights = [self.importance.weight(segment) for segment in segments]
        results = self._match(segments, weights)
        self._matched = [*zip(segments, weights, results, strict=True)]
        loss, mean = self._means(results)
        good = 0 < loss <= self.options.max_loss and all(
            bool(value.isfinite().all()) for value in mean.values()
        )
        if good:
            self.synthetic.step(mean["images"], mean["lr"], mean.get("labels"))
            self.importance.update(mean.get("weight"))
        return loss, good

    def _own_segments(self) -> list[int]:
        """This process's segments of an outer step; the last one is the first process's.

        So its policy has seen last what that of one process alone has.
        """
        count, ranks = self.options.trajectories or 1, self.ranks
        return [k for k in range(count) if (count - 1 - k) % ranks.size == ranks.rank]

    def _means(self, results: list[TrajectoryGradient]) -> tuple[float, dict[str, Tensor]]:
        """The mean loss and gradients over the segments of all processes; one all-reduce."""
        count = self.options.trajectories or 1
        own = {
            name: torch.stack([getattr(result, name) for result in results])
            for name in ("images", "lr", "labels", "weight")
            if getattr(results[0], name) is not None
        }
        if self.ranks.size == 1:
            loss = sum(float(result.loss) for result in results) / count
            return loss, {name: values.mean(0) for name, values in own.items()}
        losses = torch.stack([result.loss for result in results])
        total, *sums = self.ranks.sum([losses.sum(0), *(values.sum(0) for values in own.values())])
        return float(total) / count, {
            name: value / count for name, value in zip(own, sums, strict=True)
        }

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

    def _target(self, segment: Segment) -> Tensor:
        """The target, as numbers that are none where the teacher stands still: no step then."""
        if not torch.equal(segment.start, segment.target):
            return segment.target
        end = segment.start_epoch + self.options.expert_epochs
        warnings.warn(
            f"experts: expert {segment.expert} stands still from epoch {segment.start_epoch} to "
            f"{end}; outer steps that draw it are skipped (a lower max_start_epoch leaves such "
            "epochs out)",
            UserWarning,
            stacklevel=2,
        )
        return torch.full_like(segment.target, torch.nan)

    def _match(
        self, segments: list[Segment], weights: list[Tensor | WeightFunction | None]
    ) -> list[TrajectoryGradient]:
        options = self.options
        return trajectory_gradients(
            self.student,
            [segment.start for segment in segments],
            [self._target(segment) for segment in segments],
            self.synthetic.images,
            self.synthetic.labels,
            self.synthetic.lr,
            steps=options.steps,
            weights=weights,
            normaliser=self.importance.normaliser,
            batch_size=options.batch_size,
            augment=self.augment,
            window=options.window,
            seeds=[derive(options.seed, "inner", self.iteration, k) for k in self._own_segments()],
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
