"""The frame of a distillation, whatever the method: its loop, validation, result and checkpoint."""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.checkpoint import (
    CHECKPOINT,
    PREVIOUS,
    save_checkpoint,
    shared_checkpoint,
)
from iadd_fast.artifacts.files import check_writable, digest, remove_leftovers
from iadd_fast.data import Data
from iadd_fast.distributed import Ranks
from iadd_fast.experts import resolve_augment, validation_fingerprint
from iadd_fast.interrupt import DelayedInterrupt
from iadd_fast.machine import machine
from iadd_fast.metrics import MetricsLog
from iadd_fast.run_state import check_checkpoint, config_of
from iadd_fast.settings import DistillSettings, GradientSettings
from iadd_fast.students import Student
from iadd_fast.training import placed
from iadd_fast.validation import validation_accuracy
from iadd_fast.versions import versions

SET = "distilled.safetensors"
#: May change while a run goes on: a preset is another way to give settings, the others move no bit.
NEUTRAL = ("preset", "memory_budget", "checkpoint_every")
#: Not in the checkpoints of early versions, which are gone on from without them.
LATER = ("experts", "validation")

#: Told (iterations done, validation accuracy in percent or None) right after every validation.
OnValidation = Callable[[int, float | None], None]


class DistillationDiverged(RuntimeError):
    """Too many outer steps in a row had to be skipped, or no validation network stayed finite.

    The last good state and the best validated set are saved.
    """


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
        self.best: dict[str, Tensor] = {}
        self.best_summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {
            **config,
            "student": student.spec,
            "data": data.fingerprint,
            "validation": validation_fingerprint(data),
            "transform": data.transform.kind,
            **options.to_dict(),
        }
        self.ranks = Ranks.current()
        self._options, self._set = options, synthetic
        # What the last step started from whose loss was of use: where a diverged run is put back.
        self.last_good = self._learned()

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

        ``should_stop`` is asked after every iteration; True stops there as Ctrl-C does. Of several
        processes (:class:`~iadd_fast.distributed.Ranks`) the first one writes; all return the set,
        and one that is asked to stop stops all of them, at most one iteration later.
        """
        options, ranks = self._options, self.ranks
        self.load_checkpoint()
        if self.skips_in_a_row >= options.max_skips:
            raise DistillationDiverged(self._diverged() + self._saved())
        if self.folder is not None and ranks.first:
            check_writable("out", self.folder, self._room(self.folder))
        with (
            MetricsLog(self.folder if ranks.first else None, self.iteration) as log,
            tqdm(
                total=options.iterations,
                initial=self.iteration,
                desc="distill",
                disable=not (progress and ranks.first),
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
                    self._put_back(self.last_good)
                asked = interrupt.requested or (should_stop is not None and should_stop())
                interrupted = ranks.stop(asked)
                stop = last or diverged or interrupted
                if stop or self.iteration % options.checkpoint_every == 0:
                    log.sync()  # first, so that no row of a finished iteration is ever missing
                    self.save_checkpoint()
                if diverged:
                    told = "not finite" if row["loss"] is None else f"{row['loss']:.3g}"
                    raise DistillationDiverged(
                        self._diverged(f" (last loss {told})") + self._saved()
                    )
                if interrupted and not last:
                    kept = (
                        "the same call goes on there"
                        if self.folder
                        else "without out= nothing is kept"
                    )
                    raise KeyboardInterrupt(f"stopped after iteration {self.iteration}; {kept}")
        if not self.best:
            raise DistillationDiverged(
                "no network trained on the set stayed finite, in any validation; "
                + self.advice()
                + self._saved()
            )
        if self.skipped >= options.iterations:
            warnings.warn(
                f"none of the {options.iterations} outer steps was of use, and the set is what it "
                f"began as; {self.advice()}",
                UserWarning,
                stacklevel=3,
            )
        return self._handed_out(self.result())

    def _handed_out(self, result: DistilledSet) -> DistilledSet:
        """The result, saved; on every process the first one's, of which a policy may show more."""
        if self.folder is None:
            return result
        path = self.folder / SET
        if self.ranks.first:
            remove_leftovers(path)
            result.save(path)
        self.ranks.wait()
        return result if self.ranks.first else DistilledSet.load(path)

    def outer_step(self) -> dict[str, Any]:
        """One outer step of the method, or none where its loss is of no use: a row of metrics."""
        before = self._learned()
        loss, good = self.move()
        if good and all(bool(value.isfinite().all()) for value in self._learned().values()):
            self.skips_in_a_row = 0
            self.last_good = before
        else:
            self._put_back(before)
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
        held = self.data.validation
        score, trained = None, True
        if len(held) > 0:
            score, trained = validation_accuracy(
                self.student,
                (self._set.result, self._set.labels),
                float(self._set.lr),
                (placed(held.images, self.device), held.labels),
                self._options,
                self.augment,
                self.ranks,
                self.iteration,
            )
            row["validation_accuracy"] = score
        before = self.best_summary.get("validation_accuracy")
        if trained and (score is None or before is None or score > before):
            self.best = {"images": self._set.result, "labels": self._set.labels}
            self.best["lr"] = self._set.lr
            weight = self.weight()
            if weight is not None:
                self.best["weight"] = weight.clone()
            self.best_summary = {"iteration": self.iteration, "validation_accuracy": score}
        if self.on_validation is not None:
            self.on_validation(self.iteration, score)
        return row

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
            versions={
                **versions(),
                "machine": {**machine(self.device), "processes": self.ranks.size},
            },
            data_name=self.data.name,
            data_fingerprint=self.data.fingerprint,
            summary={**self.best_summary, "skipped": self.skipped, "seconds": self.seconds},
        )

    def save_checkpoint(self) -> None:
        """Everything :meth:`load_checkpoint` needs; the checkpoint before it stays beside it.

        Raises:
            RuntimeError: the processes have drifted apart.
        """
        tensors = self._learned()
        if self.ranks.size > 1:
            self.ranks.check_equal(digest(tensors.values()), "sets or importance weights")
        if self.folder is None or not self.ranks.first:
            return
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"good.{name}": value for name, value in self.last_good.items()}
        numbers = {name: getattr(self, name) for name in self._numbers}
        save_checkpoint(
            self.folder,
            tensors,
            {"config": self.config, "best": self.best_summary, **numbers},
        )

    _numbers = ("iteration", "skipped", "skips_in_a_row", "seconds")

    def _learned(self) -> dict[str, Tensor]:
        """The state of every part, under its prefix."""
        return {
            f"{prefix}.{name}": value.contiguous()
            for prefix, part in self.stateful().items()
            for name, value in part.state().items()
        }

    def _room(self, folder: Path) -> int:
        """About the bytes that this run is still going to take in ``folder``."""
        # The state, the last good and the best one.
        checkpoint = 3 * sum(value.nbytes for value in self._learned().values()) + 2**16
        names = (CHECKPOINT, PREVIOUS, SET)
        there = sum(path.stat().st_size for name in names if (path := folder / name).is_file())
        # The checkpoint, the one before it, one being written, and the result.
        return max(0, 4 * checkpoint - there)

    def load_checkpoint(self) -> None:
        """Go on from the folder's checkpoint, if there is one; what the first process reads.

        Raises:
            ValueError: it belongs to a run of another method or other settings (the message names
                them), or no checkpoint there can be read.
        """
        found = None if self.folder is None else shared_checkpoint(self.folder, self.ranks)
        if found is None:
            return
        tensors, metadata = found
        other = self._other(config_of(metadata))
        if other:
            raise ValueError(
                f"out: {self.folder} holds a run with another {', '.join(other)}; takes an empty "
                "folder or the same settings"
            )

        assert self.folder is not None
        check_checkpoint(
            self.folder,
            tensors,
            metadata,
            self._learned(),
            self.data.num_classes,
            self._options.iterations,
        )

        def part(name: str) -> dict[str, Tensor]:
            prefix = name + "."
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self._put_back(tensors)
        self.last_good = part("good") or self._learned()
        self.best = {name: value.to(self.device) for name, value in part("best").items()}
        self.best_summary = metadata["best"]
        for name in self._numbers:
            setattr(self, name, metadata[name])

    def _other(self, saved: Mapping[str, Any]) -> list[str]:
        """Names of what is not as in the configuration ``saved``."""
        if saved.get("method") != self.config.get("method"):
            return ["method"]
        named = [k for k in self.config if k not in NEUTRAL and (k in saved or k not in LATER)]
        return [k for k in named if saved.get(k) != self.config[k]]

    def _put_back(self, learned: Mapping[str, Tensor]) -> None:
        """Every part to its state in :meth:`_learned`."""
        for prefix, stateful in self.stateful().items():
            start = f"{prefix}."
            stateful.load_state(
                {k.removeprefix(start): v for k, v in learned.items() if k.startswith(start)}
            )

    def _diverged(self, loss: str = "") -> str:
        last = self.iteration - self.skips_in_a_row
        since = f"the last useful one was iteration {last}" if last else "none was of use"
        return (
            f"{self.skips_in_a_row} outer steps in a row were skipped{loss} at "
            f"iteration {self.iteration}, {since}; {self.advice()}"
        )

    def _saved(self) -> str:
        """Saves the best set of a run that diverged; says where it and the last good state are."""
        if self.folder is None:
            return ""
        told = f"; the last good state is in {self.folder / CHECKPOINT}"
        if self.best:
            if self.ranks.first:
                self.result().save(self.folder / SET)
            told += (
                f", the best set so far (iteration {self.best_summary['iteration']}, validation "
                f"{_percent(self.best_summary['validation_accuracy'])}) in {self.folder / SET}"
            )
        return told


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}%"
