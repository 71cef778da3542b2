"""``iadd-fast import-mtt`` and ``export``: sets of other tools in, sets for other tools out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from iadd_fast.artifacts import DistilledSet, convert_mtt_buffers
from iadd_fast.artifacts.mtt import is_buffer
from iadd_fast.cli.common import SET, DataOptions, app, data_of, of, part
from iadd_fast.data import Data
from iadd_fast.data.transform import Standardise
from iadd_fast.experts import resolve_student
from iadd_fast.options import Values, command
from iadd_fast.settings import Settings, setting

FORMATS: dict[str, Callable[[DistilledSet, Path], None]] = {
    "mtt": DistilledSet.to_mtt,
    "folder": DistilledSet.to_folder,
    "parquet": DistilledSet.to_parquet,
}


@dataclass(frozen=True)
class ImportOptions(Settings):
    """Of ``import-mtt`` alone."""

    set: Path = setting(
        ...,
        "folder with images_best.pt, one of its images_N.pt, or DC's or DSA's res_*.pt; for "
        "experts a replay_buffer_N.pt or the folder of such",
    )
    out: Path = setting(..., f"the {SET} to write; the folder, for experts")
    student: str | None = setting(
        None, "network it is for, such as convnet:width=32; default: the ConvNet of width 128"
    )
    lr: float | None = setting(
        of(DistilledSet.from_mtt, "lr"),
        "learning rate to train with; needed where no lr_*.pt lies beside the images",
    )
    mean: str | None = setting(
        None, "of each channel where the set was normalised by other numbers than the data's"
    )
    std: str | None = setting(None, "the same, such as 0.2023,0.1994,0.2010 (MTT's CIFAR)")
    augment: str = setting(
        of(DistilledSet.from_mtt, "augment"),
        "trained with: DSA families joined by _, dsa, none, or auto: dsa for images",
    )
    experiment: int = setting(
        of(DistilledSet.from_mtt, "experiment"), "which of the sets in a res_*.pt"
    )


@dataclass(frozen=True)
class ExportOptions(Settings):
    """Of ``export`` alone."""

    set: Path = setting(..., f"the {SET} to export")
    to: str = setting(..., " or ".join(FORMATS))
    out: Path = setting(..., "folder to write (mtt, folder) or file (parquet)")

    def __post_init__(self) -> None:
        self._choice("to", tuple(FORMATS))


@command(app, "import-mtt", ImportOptions, DataOptions, positional=("set", "data"))
def import_command(values: Values) -> None:
    """Make a set, or a folder of experts, out of the files of MTT, DATM, DC and their kin."""
    options = part(values, ImportOptions)
    path, out = options.pop("set"), options.pop("out")
    if is_buffer(path):
        _import_experts(path, out, options, data_of(values))
        return
    mean, std = options.pop("mean"), options.pop("std")
    if (mean is None) != (std is None):
        raise ValueError("mean and std: got one of them; take both, or none for the data's own")
    if mean is not None:
        options["transform"] = Standardise(_numbers("mean", mean), _numbers("std", std))
    made = DistilledSet.from_mtt(path, data_of(values), **options)
    made.save(out)
    print(made)
    print(f"set: {out}")


def _import_experts(path: Path, out: Path, options: Values, data: Data) -> None:
    student = resolve_student(options.pop("student"), data)
    defaults = {entry.name: entry.default for entry in fields(ImportOptions)}
    for name, value in options.items():
        if value != defaults[name]:
            raise ValueError(f"{name}: got {value!r}, but {path} holds experts; takes none")
    print(convert_mtt_buffers(path, out, student, data))
    print(f"experts: {out}")


@command(app, "export", ExportOptions, positional=("set",))
def export_command(values: Values) -> None:
    """Write a set for other tools."""
    options = ExportOptions.of(**values)
    FORMATS[options.to](DistilledSet.load(options.set), options.out)
    print(f"{options.to}: {options.out}")


def _numbers(argument: str, text: str) -> torch.Tensor:
    try:
        return torch.tensor([float(number) for number in text.split(",")])
    except ValueError:
        raise ValueError(f"{argument}: got {text!r}; takes numbers joined by commas") from None
