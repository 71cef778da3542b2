"""The training of experts: which process trains which, and how one that was begun goes on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from iadd_fast.artifacts import ExpertStore
from iadd_fast.artifacts.folder_lock import FolderInUse, exclusive
from iadd_fast.artifacts.unfinished import load_unfinished, save_unfinished
from iadd_fast.augment import Augmentation
from iadd_fast.data import Data
from iadd_fast.distributed import Ranks
from iadd_fast.fused.training import State
from iadd_fast.seeds import derive
from iadd_fast.settings import ExpertSettings
from iadd_fast.students import Student
from iadd_fast.training import accuracy, placed, train_many
from iadd_fast.training_progress import Keeping

#: Seconds between two looks at what others have finished.
LOOK = 0.5
#: Experts that a process with a GPU takes from the folder at once, where no setting says it.
TAKEN = 8
#: Most that one process alone claims at once; each claim is an open file.
CLAIMED = 256


class ExpertDiverged(RuntimeError):
    """The parameters of an expert in training are not finite any more."""


class Trajectory:
    """An expert in training.

    Attributes:
        snapshots: its parameters ``[P]`` after each epoch so far, the initial ones first.
        accuracies: in percent on the validation part, one for each snapshot; empty where there is
            no such part.
    """

    def __init__(self, index: int, store: ExpertStore | None) -> None:
        self.index, self._store = index, store
        self.snapshots: list[Tensor] = []
        self.accuracies: list[float] = []

    def begun(self, initial: Tensor, momentum: bool) -> State | None:
        """Where it goes on, if the store holds a part of it.

        Args:
            initial: the parameters it starts from. momentum: whether it is trained with one.

        Warns:
            UserWarning: what the store holds is none.
        """
        if self._store is None:
            return None
        folder = self._store.training_folder(self.index)
        found = load_unfinished(folder, self._key(self._store))
        if found is None:
            return None
        tensors, metadata = found
        snapshots, velocity = tensors.get("snapshots"), tensors.get("momentum")
        accuracies = metadata.get("accuracies")
        rows = list(snapshots) if snapshots is not None and snapshots.ndim == 2 else []
        if not (
            1 < len(rows) <= self._store.epochs
            and (velocity is not None) == momentum
            and all(_is_like(part, initial) for part in [*rows, *([velocity] if momentum else [])])
            and isinstance(accuracies, list)
            and len(accuracies) in (0, len(rows))
            and all(isinstance(value, float) for value in accuracies)
        ):
            warnings.warn(
                f"{folder}: does not hold a part of expert {self.index}; it begins anew",
                stacklevel=2,
            )
            return None
        self.snapshots, self.accuracies = rows, accuracies
        return State(len(rows) - 1, rows[-1], velocity)

    def keep(self, momentum: Tensor | None) -> None:
        """Have the store hold it as it is."""
        if self._store is None:
            return
        tensors = {"snapshots": torch.stack(self.snapshots)}
        if momentum is not None:
            tensors["momentum"] = momentum
        folder = self._store.training_folder(self.index)
        save_unfinished(folder, self._key(self._store), tensors, {"accuracies": self.accuracies})

    def _key(self, store: ExpertStore) -> dict[str, Any]:
        return {
            "expert": self.index,
            "student": store.student_spec,
            "settings": store.settings,
            "data": store.data_fingerprint,
            "epochs": store.epochs,
        }


def _is_like(part: Tensor | None, initial: Tensor) -> bool:
    return (
        part is not None
        and part.shape == initial.shape
        and part.dtype == initial.dtype
        and bool(part.isfinite().all())
    )


class ExpertTraining:
    """How experts are trained, wherever they go.

    Args:
        student, data, options, augment, device: of all experts.
        progress: whether a bar shows them.
        store: where those that are not finished are kept at times and looked for; None: nowhere.
        finished: takes each expert when it is done.
    """

    def __init__(
        self,
        student: Student,
        data: Data,
        options: ExpertSettings,
        augment: Augmentation | None,
        device: torch.device,
        progress: bool,
        store: ExpertStore | None,
        finished: Callable[[Trajectory], None],
    ) -> None:
        self.student, self.data, self.options, self.augment = student, data, options, augment
        self.device, self.progress = device, progress
        self._store, self._finished = store, finished

    def train(self, indices: Sequence[int]) -> None:
        """Train the experts of these numbers, in ascending order.

        Raises:
            ExpertDiverged, ValueError: as :func:`iadd_fast.train_experts`.
            KeyboardInterrupt: Ctrl-C or SIGTERM; those that were begun are kept, where there is a
                store.
        """
        options, device = self.options, self.device
        held, held_images = self.data.validation, placed(self.data.validation.images, device)
        seeds = [derive(options.seed, "expert", index) for index in indices]
        trajectories = [Trajectory(index, self._store) for index in indices]
        initial = torch.stack(
            [self.student.init(derive(seed, "initial"), device) for seed in seeds]
        )
        begun: dict[int, State] = {}
        for number, trajectory in enumerate(trajectories):
            state = trajectory.begun(initial[number], options.momentum > 0)
            if state is not None:
                begun[number] = state
        with (
            tqdm(
                total=len(indices) * options.epochs,
                initial=sum(state.epochs for state in begun.values()),
                desc="experts",
                unit="epoch",
                disable=not self.progress,
            ) as bar,
            Keeping() if self._store is not None else nullcontext() as keeping,
        ):

            def after_epoch(number: int, state: State) -> None:
                trajectory, theta = trajectories[number], state.theta
                self._check(trajectory, state)
                # A clone: MTT's detach().cpu() keeps one and the same storage on a CPU.
                trajectory.snapshots.append(theta.detach().to("cpu", copy=True))
                if len(held) > 0:
                    score = accuracy(self.student, theta, held_images, held.labels)
                    trajectory.accuracies.append(score)
                    bar.set_postfix(
                        expert=trajectory.index, epoch=state.epochs, accuracy=f"{score:.1f}%"
                    )
                bar.update(int(state.epochs > 0))
                last = state.epochs == options.epochs

                def keep() -> None:
                    if last:
                        self._finished(trajectory)
                        trajectory.snapshots.clear()
                    else:
                        trajectory.keep(state.momentum)

                if keeping is not None:
                    name = f"expert {trajectory.index}"
                    keeping.after_epoch(number, state.epochs, last, keep, name)
                elif last:
                    keep()

            train_many(
                self.student,
                initial,
                [(placed(self.data.train.images, device), self.data.train.labels)],
                seeds=seeds,
                lr=options.lr,
                epochs=options.epochs,
                batch_size=options.batch_size,
                momentum=options.momentum,
                weight_decay=options.weight_decay,
                decay=options.decay,
                augment=self.augment,
                on_epoch=after_epoch,
                at_once=options.at_once,
                precision=options.precision,
                begun=begun,
                on_round=None if keeping is None else keeping.after_round,
            )

    def _check(self, trajectory: Trajectory, state: State) -> None:
        """Raise where an expert has diverged, or has not moved in its first epoch."""
        index, options, theta = trajectory.index, self.options, state.theta
        if not bool(theta.isfinite().all()):
            raise ExpertDiverged(
                f"expert {index} diverged in epoch {state.epochs}: its parameters are not finite; "
                f"lower lr (now {options.lr:g}) or momentum ({options.momentum:g}), or check the "
                "scale of the images (normalise). Experts finished before it are kept"
            )
        if state.epochs != 1:
            return
        first = trajectory.snapshots[0]
        moved, size = (theta.cpu() - first).abs().max(), first.abs().max()
        if bool(moved <= torch.finfo(theta.dtype).eps * size):
            raise ValueError(
                f"lr: got {options.lr:g}; expert {index} has not moved by more than the rounding "
                f"of its parameters in its first epoch (by {float(moved):.2g}); raise lr"
            )


def share_out(
    store: ExpertStore,
    ranks: Ranks,
    at_once: int | None,
    train: Callable[[Sequence[int]], None],
) -> None:
    """Train experts that nobody else is training until all are finished.

    Each is held by a lock of its own in the folder, which the system lets go of when its holder
    dies: then another takes it, where its holder last kept it. A process begins with its own share
    and goes on with the others'. One alone claims them too: processes of a job whose first one died
    may still be training here.
    """
    while missing := store.missing():
        fair = -(-len(missing) // ranks.size)
        wanted = min(fair, TAKEN if at_once is None else at_once)
        if ranks.size == 1:
            wanted = min(fair, CLAIMED)
        own = missing[ranks.rank :: ranks.size]
        with ExitStack() as claims:
            taken: list[int] = []
            for index in [*own, *(other for other in missing if other not in own)]:
                if len(taken) == wanted:
                    break
                try:
                    claims.enter_context(
                        exclusive(store.path, f"expert {index}", store.claim_name(index))
                    )
                except FolderInUse:
                    continue
                if index in store.missing():
                    taken.append(index)
            if taken:
                store.remove_leftovers(taken)
                train(sorted(taken))
        if not taken:
            time.sleep(LOOK)
    ranks.wait()
    if ranks.first:
        store.remove_claims()
