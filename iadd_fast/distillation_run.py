"""The frame of a distillation, whatever the method: its loop, validation, result and checkpoint."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.files import check_schema, load_tensors, save_tensors
from iadd_fast.data import Data
from iadd_fast.experts import resolve_augment
from iadd_fast.interrupt import DelayedInterrupt
from iadd_fast.metrics import MetricsLog
from iadd_fast.seeds import derive
from iadd_fast.settings import DistillSettings, GradientSettings
from iadd_fast.students import Student
from iadd_fast.training import accuracy, train_many
from iadd_fast.versions import versions

CHECKPOINT = "checkpoint.safetensors"
KIND = "checkpoint"
SCHEMA = 1

#: Told (iterations done, validation accuracy in percent or None) right after every validation.
OnValidation = Callable[[int, float | None], None]


class DistillationDiverged(RuntimeError):
    """Too many outer steps in a row had to be skipped; the last good state is saved."""


class Stateful(Protocol):
    """What a run continues from a checkpoint bit for bit."""

    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`load_state` continues."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from :meth:`state`."""


class Learned(Stateful, Protocol):
    """A synthetic set while it is learned."""

    @property
    def labels(self) -> Tensor:
        """Class indices, or probabilities for soft labels."""

    @property
    def result(self) -> Tensor:
        """The images to hand out."""

    @property
    def lr(self) -> Tensor:
        """The learning rate to train on them with, a scalar."""


class Distillation(ABC):
    """One run of :func:`iadd_fast.distill`; a method of distillation gives its outer step.

    Args:
        data, folder, device, on_validation: as :func:`iadd_fast.distill` takes them, resolved.
        student: what is validated.
        options: the method's settings.
        synthetic: the set in its first state, on ``device``.
        config: what the method adds in front of the artifact's configuration.
    """

    def __init__(
        self,
        data: Data,
        student: Student,
        options: DistillSettings | GradientSettings,
        synthetic: Learned,
        config: Mapping[str, Any],
        folder: Path | None,
        device: torch.device,
        on_validation: OnValidation | None = None,
    ) -> None:
        self.data = data
        self.student = student
        self.folder = folder
        self.device = device
        self.on_validation = on_validation
        self.augment = resolve_augment(options.augment, data)
        self.every = options.validate_every or max(1, options.iterations // 10)
        self.iteration = 0
        self.skipped = 0
        self.skips_in_a_row = 0
        self.seconds = 0.0
        # What the last step started from whose loss was of use: where a diverged run is put back.
        self.last_good = synthetic.state()
        self.best: dict[str, Tensor] = {}
        self.best_summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {
            **config,
            "student": student.spec,
            "data": data.fingerprint,
            "transform": data.transform.kind,
            **options.to_dict(),
        }
        self._options, self._set = options, synthetic

    @abstractmethod
    def move(self) -> tuple[float, bool]:
        """One outer step: (loss, whether it was of use and the set has moved)."""

    @abstractmethod
    def advice(self) -> str:
        """Which settings to change when no step is of use any more."""

    def stateful(self) -> dict[str, Stateful]:
        """What a checkpoint keeps, by the prefix of its tensors."""
        return {"synthetic": self._set}

    def logged(self) -> dict[str, Any]:
        """What the method adds to the row of every iteration."""
        return {}

    def logged_at_validation(self) -> dict[str, Any]:
        """What the method adds to the row of an iteration that ends with a validation."""
        return {}

    def shown(self, row: dict[str, Any]) -> dict[str, str]:
        """What the method adds to the progress bar."""
        return {}

    def weight(self) -> Tensor | None:
        """The importance weights ``[P]`` that the artifact carries."""
        return None

    def run(
        self, progress: bool = True, should_stop: Callable[[], bool] | None = None
    ) -> DistilledSet:
        """All iterations from the checkpoint, if there is one, to the result.

        ``should_stop`` is asked after every iteration; True stops there as Ctrl-C does.
        """
        options = self._options
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
                    **self.shown(row),
                    best=_percent(self.best_summary.get("validation_accuracy")),
                )
                bar.update()
                diverged = self.skips_in_a_row >= options.max_skips
                if diverged:
                    self._set.load_state(self.last_good)
                interrupted = interrupt.requested or (should_stop is not None and should_stop())
                stop = last or diverged or interrupted
                if stop or self.iteration % options.checkpoint_every == 0:
                    self.save_checkpoint()
                if diverged:
                    raise DistillationDiverged(self._diverged(row["loss"]))
                if interrupted and not last:
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
        """One outer step of the method, or none where its loss is of no use: a row of metrics."""
        before = self._set.state()
        loss, good = self.move()
        if good:
            self.skips_in_a_row = 0
            self.last_good = before
        else:
            self._set.load_state(before)
            self.skipped += 1
            self.skips_in_a_row += 1
        row = {
            "iteration": self.iteration,
            "loss": loss if math.isfinite(loss) else None,
            "lr": float(self._set.lr),
            **self.logged(),
            "skipped": self.skipped,
        }
        self.iteration += 1
        return row

    def validate(self) -> dict[str, Any]:
        """Accuracy of fresh networks trained on the current set, on the validation part."""
        row = self.logged_at_validation()
        held = self.data.validation.to(self.device)
        score = None
        if len(held) > 0:
            score = self._validation_accuracy(held.images, held.labels)
            row["validation_accuracy"] = score
        before = self.best_summary.get("validation_accuracy")
        if score is None or before is None or score > before:
            self.best = {"images": self._set.result, "labels": self._set.labels}
            self.best["lr"] = self._set.lr
            weight = self.weight()
            if weight is not None:
                self.best["weight"] = weight.clone()
            self.best_summary = {"iteration": self.iteration, "validation_accuracy": score}
        if self.on_validation is not None:
            self.on_validation(self.iteration, score)
        return row

    def _validation_accuracy(self, images: Tensor, labels: Tensor) -> float:
        options = self._options
        # The same networks every time: scores of two iterations differ by the set alone.
        seeds = [derive(options.seed, "validation", k) for k in range(options.validation_networks)]
        thetas = train_many(
            self.student,
            torch.stack([self.student.init(derive(s, "initial"), self.device) for s in seeds]),
            [(self._set.result, self._set.labels)],
            seeds=seeds,
            lr=float(self._set.lr),
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
            seed=self._options.seed,
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
        for prefix, part in self.stateful().items():
            tensors |= {f"{prefix}.{name}": value for name, value in part.state().items()}
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
            ValueError: it belongs to a run of another method or other settings; the message names
                them.
        """
        path = (self.folder or Path()) / CHECKPOINT
        if not path.exists():
            return
        tensors, metadata = load_tensors(path)
        check_schema(path, metadata, KIND, SCHEMA)
        other = self._other(metadata.get("config", {}))
        if other:
            raise ValueError(
                f"out: {path.parent} holds a run with another {', '.join(other)}; takes an empty "
                "folder or the same settings"
            )

        def part(name: str) -> dict[str, Tensor]:
            prefix = name + "."
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        for prefix, stateful in self.stateful().items():
            stateful.load_state(part(prefix))
        self.best = {name: value.to(self.device) for name, value in part("best").items()}
        self.best_summary = metadata["best"]
        for name in self._numbers:
            setattr(self, name, metadata[name])

    def _other(self, saved: Mapping[str, Any]) -> list[str]:
        """Names of what is not as in the configuration ``saved``."""
        if saved.get("method") != self.config.get("method"):
            return ["method"]
        # A preset is only another way to give the other settings.
        return [k for k in self.config if k != "preset" and saved.get(k) != self.config[k]]

    def _diverged(self, loss: float | None) -> str:
        told = "not finite" if loss is None else f"{loss:.3g}"
        return (
            f"{self.skips_in_a_row} outer steps in a row were skipped (last loss {told}) at "
            f"iteration {self.iteration}; {self.advice()}"
            + ("" if self.folder is None else f"; the last good state is in {self.folder}")
        )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}%"
