"""One trial: a distillation that is told off when its validations lag behind."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from iadd_fast import arguments
from iadd_fast.artifacts import Experts
from iadd_fast.artifacts.checkpoint import load_checkpoint, remove_checkpoints
from iadd_fast.artifacts.files import refuse_link
from iadd_fast.data import Data
from iadd_fast.distillation import distill
from iadd_fast.distillation_run import DistillationDiverged
from iadd_fast.students import Student
from iadd_fast.tuning.result import Tried
from iadd_fast.tuning.space import Space
from iadd_fast.tuning.storage import import_optuna, put_back

if TYPE_CHECKING:
    import optuna

TRIALS = "trials"
#: Validations whose mean is a trial's accuracy: the last so many.
AVERAGED = 3


class Pruned(Exception):
    """The trial's validations lag behind those of the others."""


@dataclass(frozen=True)
class Trials:
    """What every trial distils, and where it keeps its run."""

    data: Data
    experts: Experts
    student: Student
    images_per_class: int
    space: Space
    folder: Path
    device: torch.device

    def run(
        self,
        study: optuna.Study,
        trial: optuna.Trial,
        on_iteration: Callable[[int], bool],
        on_validation: Callable[[float], None],
    ) -> None:
        """Distil with what was drawn and tell ``study`` how it ended.

        Args:
            study, trial: of :func:`~iadd_fast.tuning.storage.ask`; a trial that was stopped before
                goes on from its checkpoint.
            on_iteration: told after every iteration how many are done; True stops there.
            on_validation: told every accuracy.

        Raises:
            KeyboardInterrupt: Ctrl-C or ``on_iteration``; the trial waits to be gone on with, as it
                does after any other error.
        """
        folder = trial_folder(self.folder, trial.number)
        frozen = study.get_trials(deepcopy=False)[trial.number]
        seen = dict(frozen.intermediate_values)
        before = float(frozen.user_attrs.get("seconds", 0.0))
        began = time.monotonic()
        keywords = self.space.keywords(trial.params)
        iterations = keywords["iterations"]
        done = _iteration(folder)

        def lags() -> bool:
            # A run that has reached its end is complete, whatever the others did.
            return max(seen) < iterations and trial.should_prune()

        def validated(iteration: int, accuracy: float | None) -> None:
            assert accuracy is not None, "there is a validation part"
            if iteration not in seen:
                trial.report(accuracy, iteration)
                seen[iteration] = accuracy
            on_validation(accuracy)
            if lags():
                raise Pruned

        def should_stop() -> bool:
            nonlocal done
            done += 1
            return on_iteration(done)

        ended = "complete"
        try:
            if seen and lags():  # killed between the report and this question
                raise Pruned
            distill(
                self.data,
                self.experts,
                self.images_per_class,
                student=self.student,
                out=folder,
                device=self.device,
                progress=False,
                on_validation=validated,
                should_stop=should_stop,
                **keywords,
            )
        except Pruned:
            ended = "pruned"
        except DistillationDiverged:
            ended = "diverged"
        except torch.OutOfMemoryError:
            ended = "out of memory"
        except BaseException:
            trial.set_user_attr("seconds", before + time.monotonic() - began)
            put_back(study, trial.number)
            raise
        trial.set_user_attr("seconds", before + time.monotonic() - began)
        trial.set_user_attr("ended", ended)
        if ended == "complete":
            study.tell(trial, mean_of_last(seen)[0])
        else:
            study.tell(trial, state=import_optuna().trial.TrialState.PRUNED)
        remove_checkpoints(folder)


def _iteration(folder: Path) -> int:
    """At which iteration the run in ``folder`` goes on."""
    found = load_checkpoint(folder)
    if found is None:
        return 0
    return arguments.whole(f"{folder}: iteration of the checkpoint", found[1].get("iteration"), 0)


def tidy(folder: Path, study: optuna.Study) -> None:
    """Remove the checkpoints of finished trials that a killed process has left.

    Raises:
        ValueError: the folder of the trials is a link.
    """
    refuse_link(folder / TRIALS)
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished():
            remove_checkpoints(refuse_link(trial_folder(folder, trial.number)))


def trial_folder(folder: Path, number: int) -> Path:
    """Where trial ``number`` keeps its run."""
    return folder / TRIALS / f"{number:04d}"


def mean_of_last(
    validations: dict[int, float], until: int | None = None
) -> tuple[float, float | None, int]:
    """Mean and standard deviation of the last validations (by iteration), and how many they are.

    Args:
        validations: iterations done -> accuracy; at least one.
        until: the last iteration that counts; None: all.
    """
    counted = [validations[k] for k in sorted(validations) if until is None or k <= until]
    last = counted[-AVERAGED:]
    spread = statistics.stdev(last) if len(last) > 1 else None
    return statistics.fmean(last), spread, len(last)


def tried(study: optuna.Study, space: Space, folder: Path) -> list[Tried]:
    """Every trial that has begun."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if set(trial.params) != set(space.searched):
            continue
        accuracy, spread, averaged = None, None, 0
        if trial.intermediate_values:
            accuracy, spread, averaged = mean_of_last(trial.intermediate_values)
        made = trial_folder(folder, trial.number) / "distilled.safetensors"
        rows.append(
            Tried(
                number=trial.number,
                state=trial.user_attrs.get("ended", "unfinished"),
                accuracy=accuracy,
                spread=spread,
                averaged=averaged,
                seconds=float(trial.user_attrs.get("seconds", 0.0)),
                settings=space.chosen(trial.params),
                validations=sorted(trial.intermediate_values.items()),
                set=str(made.relative_to(folder)) if made.is_file() else None,
            )
        )
    return rows
