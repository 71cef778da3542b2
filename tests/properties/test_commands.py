"""The command line: every flag and every key of a TOML file with odd values.

What a job does for hours is replaced by an error right where it would begin, so that everything
before it is the real thing. The property: status 0, 1 or 2, and where it is not 0 one line that
says why; never a traceback. Each test breaks when a value reaches a job as another type than the
Python call takes, or an error passes by those that the command line knows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import iadd_fast.comparison.run
import iadd_fast.demo
import iadd_fast.evaluation
import iadd_fast.experts
import iadd_fast.planning.run
from iadd_fast import load_data
from iadd_fast.cli import app
from iadd_fast.distillation_run import Distillation
from iadd_fast.expert_training import ExpertTraining
from iadd_fast.tuning.search import Search
from tests.properties.strategies import small_set, told

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
#: What each command needs to get as far as its job.
NEEDED = {
    "experts": ["data.npz", "--out", "new-experts"],
    "distill": ["data.npz", "--out", "new-distill"],
    "evaluate": ["set.safetensors", "data.npz"],
    "compare": [],
    "demo": ["--out", "new-demo"],
    "doctor": [],
    "import-mtt": ["nothing", "data.npz", "--out", "new-import-mtt"],
    "export": ["set.safetensors", "--to", "mtt", "--out", "new-export"],
    "plan": ["data.npz"],
    "tune": ["data.npz", "--out", "new-tune"],
    "report": ["set.safetensors", "--data", "data.npz", "--out", "new-report"],
}
FLAGS = [
    (name, flag)
    for name, found in COMMANDS.items()
    for parameter in found.params
    for flag in (*parameter.opts, *parameter.secondary_opts)
    if flag.startswith("--") and flag != "--help"
]
KEYS = [
    (name, parameter.name)
    for name, found in COMMANDS.items()
    for parameter in found.params
    if parameter.name not in ("help", "config")
]
texts = st.one_of(
    st.sampled_from(
        ("", "0", "-1", "1", "3", "1.5", "nan", "inf", "-inf", "1e308", "1e-320", "9" * 30,
         "9" * 5000, "true", "None", "none", "auto", "dsa", "a:b=c", "x" * 5000, "../up", "/",
         "ß🙂", "a\nb", "\x00", "--", "-", "cpu", "cuda:99", "meta", "3x32", "0x0x0", "[]", "1,2",
         "set.safetensors", "data.npz", "mlp:width=2")
    ),
    st.text(max_size=6),
)  # fmt: skip
toml_values = st.sampled_from(
    ("0", "-1", "3", "1.5", "nan", "-inf", "1e308", "true", "false", '""', '"3"', '"none"', "[]",
     "[1]", '["a"]', '["a", 1]', "[[]]", "{}", "{a = 1}", "2020-01-01", "12:00:00", "9" * 30,
     "9" * 400, "9" * 5000, "0x10", '"\\u0000"', '"a\\nb"', "[" * 3000)
)  # fmt: skip


class Reached(ValueError):
    """The job would have begun."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a data set and a distilled set to stand in, and no job that begins."""
    made = tmp_path_factory.mktemp("commands")
    images = np.arange(12 * 16, dtype=np.float32).reshape(12, 1, 4, 4)
    np.savez(made / "data.npz", images=images, labels=np.arange(12) % 2)
    data = load_data(made / "data.npz")
    small_set(data_fingerprint=data.fingerprint, transform=data.transform).save(
        made / "set.safetensors"
    )

    def reached(*_: Any, **__: Any) -> None:
        raise Reached("job: would begin here")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setattr(ExpertTraining, "train", reached)
        patch.setattr(Distillation, "run", reached)
        patch.setattr(iadd_fast.evaluation, "_trained", reached)
        patch.setattr(iadd_fast.comparison.run, "Process", reached)
        patch.setattr(iadd_fast.planning.run, "Process", reached)
        patch.setattr(Search, "run", reached)
        patch.setattr(iadd_fast.demo, "run_demo", reached)
        yield made


def check(arguments: list[str]) -> int:
    """Run the command line; its status, once the property holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other data than the set's, which is no error
        result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2)
    if result.exit_code:
        lines = result.stderr.strip().splitlines()
        ours = lines and lines[-1].startswith("iadd-fast: ")
        told("refused by its own check" if ours else "refused by the parser")
        assert "Traceback" not in result.stderr
        if ours:
            assert sum(line.startswith("iadd-fast: ") for line in lines) == 1
            assert len(lines[-1]) < 2000
        else:
            assert "Usage" in result.stderr or "Error" in result.stderr
    return result.exit_code


def test_the_job_is_reached(folder: Path) -> None:
    """Breaks when the arguments every other test begins with are refused before they matter."""
    for name, needed in NEEDED.items():
        result = CliRunner().invoke(app, [name, *needed])
        if name in ("doctor", "export"):
            assert result.exit_code == 0
        elif name != "import-mtt":
            assert "job: would begin here" in result.stderr, (name, result.output)


@given(flag=st.sampled_from(FLAGS), value=texts)
def test_every_flag(folder: Path, flag: tuple[str, str], value: str) -> None:
    """Breaks when one flag of one command lets a value through to where nobody checks it."""
    name, option = flag
    parameter = next(
        found for found in COMMANDS[name].params if option in (*found.opts, *found.secondary_opts)
    )
    given_value = [] if getattr(parameter, "is_flag", False) else [value]
    check([name, *NEEDED[name], option, *given_value])


@given(
    name=st.sampled_from(sorted(COMMANDS)),
    words=st.lists(st.one_of(texts, st.sampled_from([flag for _, flag in FLAGS])), max_size=4),
)
def test_any_words(folder: Path, name: str, words: list[str]) -> None:
    """Breaks when unknown flags, flags without values or too many words end in a traceback."""
    if "demo" not in words:
        check([name, *words])
    check([*words[:1], name])


@given(key=st.sampled_from(KEYS), value=toml_values)
def test_every_key(folder: Path, key: tuple[str, str], value: str) -> None:
    """Breaks when a date, a table, an infinity or a number of 400 digits in a file is no error."""
    name, entry = key
    if name == "doctor":
        return
    config = folder / "config.toml"
    config.write_text(f"{entry} = {value}\n", encoding="utf-8")
    check([name, *NEEDED[name], "--config", str(config)])


@given(text=st.one_of(st.text(), st.binary(), toml_values.map(lambda value: f"seed = {value}")))
def test_any_file(folder: Path, text: str | bytes) -> None:
    """Breaks when bytes that are no TOML, or one nested without end, are another error."""
    config = folder / "any.toml"
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    config.write_bytes(data)
    check(["distill", *NEEDED["distill"], "--config", str(config)])


@given(value=st.floats())
def test_numbers_arrive_as_they_are(folder: Path, value: float) -> None:
    """Breaks when NaN or an infinity passes for a learning rate on the way through the parser."""
    status = check(["distill", *NEEDED["distill"], f"--lr-images={value!r}"])
    result = CliRunner().invoke(app, ["distill", *NEEDED["distill"], f"--lr-images={value!r}"])
    reached = "job: would begin here" in result.stderr
    assert status == 2
    assert reached == (math.isfinite(value) and 0 < value <= 3.4e38)
