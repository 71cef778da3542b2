"""docs/from-mtt.md: every flag of both sides stands there, and those of ours exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from iadd_fast.cli import app
from iadd_fast.evaluation import evaluate
from iadd_fast.preset import presets
from iadd_fast.settings import DistillSettings, ExpertSettings

PAGE = (Path(__file__).parent.parent / "docs" / "from-mtt.md").read_text(encoding="utf-8")
# The flags of the scripts at the commits that the page names, with the defaults it repeats.
BUFFER = {
    "dataset", "subset", "model", "num_experts", "lr_teacher", "batch_train", "batch_real", "dsa",
    "dsa_strategy", "data_path", "buffer_path", "train_epochs", "zca", "decay", "mom", "l2",
    "save_interval",
}  # fmt: skip
DISTILL = {
    "dataset", "subset", "model", "ipc", "eval_mode", "num_eval", "eval_it", "epoch_eval_train",
    "Iteration", "lr_img", "lr_lr", "lr_teacher", "lr_init", "batch_real", "batch_syn",
    "batch_train", "pix_init", "dsa", "dsa_strategy", "data_path", "buffer_path", "expert_epochs",
    "syn_steps", "max_start_epoch", "zca", "load_all", "no_aug", "texture", "canvas_size",
    "canvas_samples", "max_files", "max_experts", "force_save",
}  # fmt: skip
OTHERS = {"ema_decay", "teacher_label", "data_dir", "label_dir", "lr_dir"}  # of FTD, TESLA, DATM
FLAG = re.compile(r"--([A-Za-z][\w-]*)")


def section(name: str) -> str:
    """The page below the heading ``## name``."""
    return PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """Cells of the tables in ``text``, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def flags_of(command: str) -> dict[str, Any]:
    """Name of every flag of a command -> its parameter."""
    commands: Any = typer.main.get_command(app)
    return {
        name.removeprefix("--"): parameter
        for parameter in commands.commands[command].params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


@pytest.mark.parametrize(("script", "flags"), [("`buffer.py`", BUFFER), ("`distill.py`", DISTILL)])
def test_every_flag_of_the_scripts_is_mapped(script: str, flags: set[str]) -> None:
    """Breaks if a row is lost, or a flag is made up that the script does not have."""
    named = {name for row in rows(section(script)) for name in FLAG.findall(row[0])}
    assert named - OTHERS == flags


@pytest.mark.parametrize(
    ("script", "command"), [("`buffer.py`", "experts"), ("`distill.py`", "distill")]
)
def test_our_flags_exist(script: str, command: str) -> None:
    """Breaks if a flag is renamed here and not on the page, or stands under another command."""
    for _, ours, _ in rows(section(script)):
        own, _, evaluation = ours.partition("`evaluate`:")
        for name in FLAG.findall(own):
            assert name in flags_of(command), name
        for name in FLAG.findall(evaluation):
            assert name in flags_of("evaluate"), name


def test_no_other_flag_is_named() -> None:
    """Breaks if the text names a flag that nobody has."""
    ours = set().union(*map(flags_of, ("experts", "distill", "evaluate", "import-mtt", "export",
                                       "report")))  # fmt: skip
    unknown = set(FLAG.findall(PAGE)) - ours - BUFFER - DISTILL - OTHERS
    assert not unknown


def test_the_commands_on_the_page_are_taken() -> None:
    """Breaks if an example has a flag of another command, or a preset that is gone."""
    lines = PAGE.replace("\\\n", " ").splitlines()
    calls = [line.split("iadd-fast ", 1)[1] for line in lines if line.startswith("    iadd-fast ")]
    calls += re.findall(r"`iadd-fast (\w[^`]*)`", PAGE)
    calls = [call for call in calls if "--" in call]
    assert len(calls) >= 7
    for call in calls:
        for name in FLAG.findall(call):
            assert name in flags_of(call.split()[0]), call
    for name in re.findall(r"--preset (\S+)", PAGE):
        assert name in presets()


def test_our_defaults_are_those_of_the_code() -> None:
    """Breaks if a default changes and the page keeps the old one."""
    by_command = {"experts": ExpertSettings(), "distill": DistillSettings()}
    checked = 0
    for script, command in (("`buffer.py`", "experts"), ("`distill.py`", "distill")):
        for _, ours, _ in rows(section(script)):
            own, _, evaluation = ours.partition("`evaluate`:")
            for name, value in re.findall(r"`--([\w-]+) ([\d.e-]+)`", own):
                default = getattr(by_command[command], name.replace("-", "_"))
                assert float(value) == default, name
                checked += 1
            for name, value in re.findall(r"`--([\w-]+) ([\d.e-]+)`", evaluation):
                assert float(value) == (evaluate.__kwdefaults__ or {})[name.replace("-", "_")], name
                checked += 1
    assert checked >= 15
