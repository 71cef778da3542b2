"""What the commands share: the application, the options of data and runs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Any

import typer

from iadd_fast.data import Data, load_data
from iadd_fast.options import Values
from iadd_fast.settings import Settings, setting

SET = "distilled.safetensors"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
NETWORKS = "networks"

app = typer.Typer(
    name="iadd-fast",
    help="Dataset distillation with learned importance weights (IADD), measured and explained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def of(function: Any, name: str) -> Any:
    """The default of a keyword of ``function``, so that it stands in one place."""
    return inspect.signature(function).parameters[name].default


@dataclass(frozen=True)
class DataOptions(Settings):
    """What :func:`~iadd_fast.data.load_data` takes."""

    data: str = setting(
        ..., "digits, or a path: class folders of images, IDX, CIFAR, UCR .tsv, .npz or .npy"
    )
    labels: str | None = setting(None, "labels.npy of an .npy of samples")
    test: str | None = setting(None, "test part, where it lies elsewhere")
    test_labels: str | None = setting(None, "labels of an .npy of test samples")
    normalise: str = setting(of(load_data, "normalise"), "standard, zca or none")
    validation_fraction: float = setting(
        of(load_data, "validation_fraction"),
        "share of the training part held out to choose on",
    )
    test_fraction: float = setting(
        of(load_data, "test_fraction"),
        "share held out for the test where the data has no test part",
    )
    image_size: int | None = setting(None, "side to which images of a folder are resized")
    data_seed: int = setting(of(load_data, "seed"), "fixes what is held out")
    cache: str | None = setting(
        None, "folder to write the normalised images to once and map them from: larger than memory"
    )


@dataclass(frozen=True)
class RunOptions(Settings):
    """What every training takes."""

    student: str | None = setting(
        None, "network such as convnet:width=32; default: the ConvNet of the data's shape"
    )
    device: str | None = setting(None, "cpu, cuda, cuda:1; default: cuda where there is one")
    progress: bool = setting(True, "show progress")


def data_of(values: Values) -> Data:
    options = part(values, DataOptions)
    return load_data(options.pop("data"), seed=options.pop("data_seed"), **options)


def part(values: Values, *groups: type[Settings]) -> Values:
    return {entry.name: values[entry.name] for group in groups for entry in fields(group)}
