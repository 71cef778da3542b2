"""Experts out of the buffers of MTT's scripts, file by file."""

from __future__ import annotations

from pathlib import Path

from iadd_fast import arguments
from iadd_fast.artifacts.expert_store import ExpertStore
from iadd_fast.artifacts.mtt import buffer_files, trajectories_of
from iadd_fast.data.dataset import Data
from iadd_fast.students import Student


def convert_mtt_buffers(
    path: str | Path, out: str | Path, student: Student, data: Data
) -> ExpertStore:
    """A folder of experts with the trajectories of MTT's ``replay_buffer_*.pt``.

    One file at a time is in memory; each is read twice, for the trajectories are counted first.
    A call that was stopped goes on with the experts that are missing.

    Args:
        path: as :func:`~iadd_fast.artifacts.mtt.load_mtt_buffers` takes it.
        out: folder of the experts.
        student: the network they are of.
        data: what they were trained on, in the normalisation they were trained with. The files do
            not say; a distillation will insist on this data.

    Raises:
        TypeError: ``student`` or ``data`` is none.
        FileNotFoundError, ValueError: as :func:`~iadd_fast.artifacts.mtt.load_mtt_buffers`; or
            ``out`` holds experts of something else.
    """
    arguments.instance("student", student, Student, "a Student")
    arguments.instance("data", data, Data, "data from load_data")
    count, epochs = 0, 0
    for trajectory in trajectories_of(path, student):
        count, epochs = count + 1, len(trajectory) - 1
        del trajectory
    store = ExpertStore.create(
        out,
        student_spec=student.spec,
        settings={
            "made by": "MTT's scripts",
            "files": [file.name for file in buffer_files(path)],
            "transform": data.transform.kind,
            "images": len(data.train),
        },
        data_fingerprint=data.fingerprint,
        data_name=data.name,
        count=count,
        epochs=epochs,
    )
    missing = set(store.missing())
    for index, trajectory in enumerate(trajectories_of(path, student)):
        if index in missing:
            store.add(index, trajectory, {})
        del trajectory
    return store
