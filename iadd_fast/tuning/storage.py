"""The search on disk: an Optuna journal that outlives the process, for one process at a time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iadd_fast.artifacts.files import to_json
from iadd_fast.reading import regular_file
from iadd_fast.seeds import derive
from iadd_fast.tuning.journal import check_study, check_trial, distributions
from iadd_fast.tuning.space import Space

if TYPE_CHECKING:
    import optuna

JOURNAL = "trials.journal"
#: Bytes of a journal; a trial takes some thousand.
LARGEST_JOURNAL = 2**30
NAME = "tune"
SETTINGS = "settings"
INSTALL = "pip install 'iadd_fast[tune]'"


def import_optuna() -> Any:
    """The module ``optuna``.

    Raises:
        ValueError: it is not installed; the message has the command that does it.
    """
    try:
        import optuna
        import optuna.storages.journal  # absent before 4.0
    except ImportError:
        raise ValueError(f"tune: needs Optuna 4 or later: {INSTALL}") from None
    return optuna


@contextmanager
def quiet(optuna: Any) -> Iterator[None]:
    """Without Optuna's own messages."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def open_study(
    folder: Path, settings: Mapping[str, Any], space: Space, pruner: Any
) -> optuna.Study:
    """The search in ``folder``, begun with the first trial of ``space`` or gone on with.

    A trial that a killed process has left running waits to be gone on with. Needs
    :func:`~iadd_fast.artifacts.folder_lock.exclusive`.

    Raises:
        ValueError: ``folder`` holds a search of other settings (the message names them with both
            values), or a damaged journal.
    """
    optuna = import_optuna()
    path = folder / JOURNAL
    _mend(path)
    with _replayed(path):
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(path))
        )
    if NAME in optuna.get_all_study_names(storage):
        study = optuna.load_study(storage=storage, study_name=NAME, pruner=pruner)
    else:
        study = optuna.create_study(
            storage=storage, study_name=NAME, direction="maximize", pruner=pruner
        )
    saved = study.user_attrs.get(SETTINGS)
    with _replayed(path):
        check_study(study, saved)
    if saved is None:
        to_json(settings, "settings", strict=True)
        study.set_user_attr(SETTINGS, dict(settings))
    else:
        check_same(folder, saved, settings)
    trials = study.get_trials(deepcopy=False)
    known = distributions(optuna, space)
    with _replayed(path):
        for trial in trials:
            check_trial(trial, space, known)
    if not trials:
        study.enqueue_trial(dict(space.first))
    for trial in trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            put_back(study, trial.number)
    return study


def put_back(study: optuna.Study, number: int) -> None:
    """Let trial ``number``, which has begun, wait for :func:`ask` to go on with it."""
    waiting = import_optuna().trial.TrialState.WAITING
    trial = study.get_trials(deepcopy=False)[number]
    study._storage.set_trial_state_values(trial._trial_id, waiting)


def ask(study: optuna.Study, space: Space, seed: int) -> optuna.Trial:
    """The trial that waits, else a new one.

    What is drawn for a trial depends on ``seed``, its number and the trials before it, and not on
    how many processes it took to run those.
    """
    optuna = import_optuna()
    trials = study.get_trials(deepcopy=False)
    waiting = [t.number for t in trials if t.state == optuna.trial.TrialState.WAITING]
    number = waiting[0] if waiting else len(trials)
    with warnings.catch_warnings():
        # Optuna 4 calls this option experimental; 5 has it by default.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(
            multivariate=True, seed=derive(seed, "tune", number) % 2**32
        )
    ranges = distributions(optuna, space)
    if not waiting:
        # All values in one line of the journal: drawn into it one by one, a trial that was killed
        # between two of them would go on with other random numbers.
        scratch = optuna.create_study(direction="maximize", sampler=study.sampler)
        scratch.add_trials(trials)
        study.enqueue_trial(scratch.ask(ranges).params)
    return study.ask(ranges)


def check_same(folder: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` naming every setting in which two searches differ."""
    names = [*asked, *(name for name in saved if name not in asked)]
    other = [
        f"{name} ({_told(saved, name)} there, {_told(asked, name)} here)"
        for name in names
        if saved.get(name) != asked.get(name) or (name in saved) != (name in asked)
    ]
    if other:
        raise ValueError(
            f"out: {folder} holds a search with another {', '.join(other)}; takes an empty folder "
            "or the same settings"
        )


def _told(settings: Mapping[str, Any], name: str) -> str:
    value = settings.get(name, "nothing")
    if not isinstance(value, dict):
        return str(value)
    if "choices" in value:
        return f"searched among {', '.join(value['choices'])}"
    if "low" in value:
        return f"searched from {value['low']:g} to {value['high']:g}"
    return ", ".join(f"{key}={entry}" for key, entry in value.items())


@contextmanager
def _replayed(journal: Path) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of what ``journal`` says."""
    try:
        yield
    except Exception as error:  # Optuna replays whatever the lines say
        raise ValueError(
            f"out: {journal} is damaged ({type(error).__name__}: {error}); takes another folder"
        ) from None


def _mend(journal: Path) -> None:
    """Drop what a killed process left: half a last line, and the lock of its last write."""
    lock = journal.with_name(f"{JOURNAL}.lock")
    if lock.is_dir():
        raise ValueError(f"out: {lock} is a folder; takes another folder")
    lock.unlink(missing_ok=True)
    if not journal.exists():
        return
    # Through a link another file would be cut off.
    if journal.is_symlink() or regular_file(journal).stat().st_size > LARGEST_JOURNAL:
        raise ValueError(
            f"out: {journal} is a link or has more than {LARGEST_JOURNAL:,} bytes; takes another "
            "folder"
        )
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(journal, whole)
