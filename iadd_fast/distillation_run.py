"""One distillation: its state, one outer step, validation and checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from iadd_fast.artifacts import DistilledSet, Experts
from iadd_fast.artifacts.files import check_schema, load_tensors, save_tensors
from iadd_fast.data import Data
from iadd_fast.experts import resolve_augment
from iadd_fast.importance import Importance, Segment, Setting
from iadd_fast.interrupt import DelayedInterrupt
from iadd_fast.metrics import MetricsLog
from iadd_fast.seeds import derive, generator
from iadd_fast.settings import DistillSettings
from iadd_fast.students import Student
from iadd_fast.synthetic import SyntheticSet, initial_images
from iadd_fast.training import accuracy, train_many
from iadd_fast.unroll import TrajectoryGradient, release, trajectory_gradients
from iadd_fast.versions import versions

CHECKPOINT = "checkpoint.safetensors"
KIND = "checkpoint"
SCHEMA = 1


class DistillationDiverged(RuntimeError):
    """Too many outer steps in a row had to be skipped; the last good state is saved."""


class Distillation:
    """One run of :func:`iadd_fast.distill`."""

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
    ) -> None:
        self.data = data
        self.experts = experts
        self.student = student
        self.importance = importance
        self.options = options
        self.folder = folder
        self.device = device
        self.augment = resolve_augment(options.augment, data)
        self.every = options.validate_every or max(1, options.iterations // 10)
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
        self.iteration = 0
        self.skipped = 0
        self.skips_in_a_row = 0
        self.seconds = 0.0
        # What the last step started from whose loss was of use: where a diverged run is put back.
        self.last_good = self.synthetic.state()
        self.best: dict[str, Tensor] = {}
        self.best_summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {
            "preset": preset,
            "images_per_class": images_per_class,
            "importance": importance.describe(),
            "student": student.spec,
            "data": data.fingerprint,
            "transform": data.transform.kind,
            **options.to_dict(),
        }

    def run(self, progress: bool = True) -> DistilledSet:
        """All iterations from the checkpoint, if there is one, to the result."""
        try:
            return self._run(progress)
        finally:
            release(self.student)

    def _run(self, progress: bool) -> DistilledSet:
        options = self.options
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.load_checkpoint()
        with (
            MetricsLog(self.folder, self.iteration) as log,
            tqdm(
                total=options.iterations,
                initial=self.iteration,
                desc="distill",
                disable=not progress,
            ) as bar,
            DelayedInterrupt() as interrupt,
        ):
            while self.iteration < options.iterations:
                began = time.perf_counter()
                row = self.outer_step()
                last = self.iteration == options.iterations
                if self.iteration % self.every == 0 or last:
                    row |= self.validate()
                self.seconds += time.perf_counter() - began
                row["seconds"] = time.perf_counter() - began
                log.write(row)
                bar.set_postfix(
                    loss="skipped" if row["loss"] is None else f"{row['loss']:.4f}",
                    alpha=f"{row['lr']:.4g}",
                    spread=f"{row['weight_spread']:.2f}",
                    best=_percent(self.best_summary.get("validation_accuracy")),
                )
                bar.update()
                diverged = self.skips_in_a_row >= options.max_skips
                if diverged:
                    self.synthetic.load_state(self.last_good)
                stop = last or diverged or interrupt.requested
                if stop or self.iteration % options.checkpoint_every == 0:
                    self.save_checkpoint()
                if diverged:
                    raise DistillationDiverged(self._diverged(row["loss"]))
                if interrupt.requested and not last:
                    kept = (
                        "the same call goes on there"
                        if self.folder
                        else "without out= nothing is kept"
                    )
                    raise KeyboardInterrupt(f"stopped after iteration {self.iteration}; {kept}")
        result = self.result()
        if self.folder is not None:
            result.save(self.folder / "distilled.safetensors")
        return result

    def outer_step(self) -> dict[str, Any]:
        """Match ``trajectories`` segments and move; or skip when the loss is of no use."""
        segments = [self._draw_segment(k) for k in range(self.options.trajectories)]
        results = self._match(segments)
        loss = sum(float(result.loss) for result in results) / len(results)
        good = loss <= self.options.max_loss and all(_finite(result) for result in results)
        if good:
            self.skips_in_a_row = 0
            self.last_good = self.synthetic.state()
            mean = _mean_of(results)
            self.synthetic.step(mean("images"), mean("lr"), mean("labels"))
            self.importance.update(mean("weight"))
        else:
            self.skipped += 1
            self.skips_in_a_row += 1
        row = {
            "iteration": self.iteration,
            "loss": loss if math.isfinite(loss) else None,
            "lr": float(self.synthetic.lr),
            "weight_spread": self._spread(),
            "skipped": self.skipped,
        }
        self.iteration += 1
        return row

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

    def _match(self, segments: list[Segment]) -> list[TrajectoryGradient]:
        options = self.options
        return trajectory_gradients(
            self.student,
            [segment.start for segment in segments],
            [segment.target for segment in segments],
            self.synthetic.images,
            self.synthetic.labels,
            self.synthetic.lr,
            steps=options.steps,
            weights=[self.importance.weight(segment) for segment in segments],
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

    def _spread(self) -> float:
        """Standard deviation of v = w^2 over its mean: 0 for uniform weights."""
        weight = self.importance.current()
        if weight is None:
            return 0.0
        value = weight.double().square()
        return float(value.std(correction=0) / value.mean().clamp_min(1e-300))

    def validate(self) -> dict[str, Any]:
        """Accuracy of fresh networks trained on the current set, on the validation part."""
        weight = self.importance.current()
        row: dict[str, Any] = {}
        if weight is not None:
            value = weight.square()
            row["layer_weight"] = {
                layer: float(torch.cat([value[part] for part in parts]).mean())
                for layer, parts in self.student.layers().items()
            }
        held = self.data.validation.to(self.device)
        score = None
        if len(held) > 0:
            score = self._validation_accuracy(held.images, held.labels)
            row["validation_accuracy"] = score
        before = self.best_summary.get("validation_accuracy")
        if score is None or before is None or score > before:
            self.best = {"images": self.synthetic.result, "labels": self.synthetic.labels}
            self.best["lr"] = self.synthetic.lr
            if weight is not None:
                self.best["weight"] = weight.clone()
            self.best_summary = {"iteration": self.iteration, "validation_accuracy": score}
        return row

    def _validation_accuracy(self, images: Tensor, labels: Tensor) -> float:
        options = self.options
        # The same networks every time: scores of two iterations differ by the set alone.
        seeds = [derive(options.seed, "validation", k) for k in range(options.validation_networks)]
        thetas = train_many(
            self.student,
            torch.stack([self.student.init(derive(s, "initial"), self.device) for s in seeds]),
            [(self.synthetic.result, self.synthetic.labels)],
            seeds=seeds,
            lr=float(self.synthetic.lr),
            epochs=options.validation_epochs,
            momentum=0.9,
            weight_decay=5e-4,
            decay=True,
            augment=self.augment,
            # Rounded weights would be another network than the one that evaluation trains.
            precision="tf32" if options.precision == "tf32" else "float32",
        )
        scores = [accuracy(self.student, theta, images, labels) for theta in thetas]
        return sum(scores) / len(scores)

    def result(self) -> DistilledSet:
        """The set of the best validated iteration."""
        return DistilledSet(
            images=self.best["images"],
            labels=self.best["labels"],
            lr=float(self.best["lr"]),
            weight=self.best.get("weight"),
            class_names=self.data.class_names,
            transform=self.data.transform,
            student_spec=self.student.spec,
            augment=str(self.augment) if self.augment else None,
            config=self.config,
            seed=self.options.seed,
            versions=versions(),
            data_name=self.data.name,
            data_fingerprint=self.data.fingerprint,
            summary={**self.best_summary, "skipped": self.skipped, "seconds": self.seconds},
        )

    def save_checkpoint(self) -> None:
        """Everything :meth:`load_checkpoint` needs, in one file written whole."""
        if self.folder is None:
            return
        tensors = {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"synthetic.{k}": v for k, v in self.synthetic.state().items()}
        tensors |= {f"importance.{k}": v for k, v in self.importance.state().items()}
        numbers = {name: getattr(self, name) for name in self._numbers}
        save_tensors(
            self.folder / CHECKPOINT,
            {name: value.contiguous() for name, value in tensors.items()},
            {
                "kind": KIND,
                "schema": SCHEMA,
                "config": self.config,
                "best": self.best_summary,
                **numbers,
            },
        )

    _numbers = ("iteration", "skipped", "skips_in_a_row", "seconds")

    def load_checkpoint(self) -> None:
        """Go on from the folder's checkpoint, if there is one.

        Raises:
            ValueError: it belongs to a run of other settings; the message names them.
        """
        path = (self.folder or Path()) / CHECKPOINT
        if not path.exists():
            return
        tensors, metadata = load_tensors(path)
        check_schema(path, metadata, KIND, SCHEMA)
        saved = metadata.get("config", {})
        # A preset is only another way to give the other settings.
        other = [k for k in self.config if k != "preset" and saved.get(k) != self.config[k]]
        if other:
            raise ValueError(
                f"out: {path.parent} holds a run with another {', '.join(other)}; takes an empty "
                "folder or the same settings"
            )

        def part(name: str) -> dict[str, Tensor]:
            prefix = name + "."
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.synthetic.load_state(part("synthetic"))
        self.importance.load_state(part("importance"))
        self.best = {name: value.to(self.device) for name, value in part("best").items()}
        self.best_summary = metadata["best"]
        for name in self._numbers:
            setattr(self, name, metadata[name])

    def _diverged(self, loss: float | None) -> str:
        told = "not finite" if loss is None else f"{loss:.3g}"
        return (
            f"{self.skips_in_a_row} outer steps in a row were skipped (last loss {told}, max_loss "
            f"{self.options.max_loss:g}) at iteration {self.iteration}; lower lr_images (now "
            f"{self.options.lr_images:g}), lr_lr ({self.options.lr_lr:g}) or lr_init "
            f"({self.options.lr_init:g})"
            + ("" if self.folder is None else f"; the last good state is in {self.folder}")
        )


def _mean_of(results: list[TrajectoryGradient]) -> Callable[[str], Any]:
    def mean(name: str) -> Tensor | None:
        values = [getattr(result, name) for result in results]
        return None if values[0] is None else torch.stack(values).mean(0)

    return mean


def _finite(result: TrajectoryGradient) -> bool:
    parts = (result.loss, result.images, result.labels, result.lr, result.weight)
    return all(bool(part.isfinite().all()) for part in parts if part is not None)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}%"
