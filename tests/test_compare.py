from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import iadd_fast
from iadd_fast import cli
from iadd_fast.comparison import CompareSettings, ContenderFailed, run
from iadd_fast.comparison.floor import floor, layers, work
from iadd_fast.comparison.memory import PeakMemory
from iadd_fast.comparison.problem import CONTENDERS, Contender, gradients, make_iteration
from iadd_fast.comparison.processes import Process
from iadd_fast.comparison.result import Comparison, make_row, relative_errors
from iadd_fast.unroll.problem import Problem

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "image_size": 8,
    "width": 4,
    "depth": 1,
    "classes": 3,
    "steps": 2,
    "channels": 2,
}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]


def passes(shape: tuple[int, int, int, int], inputs: int, first: bool) -> int:
    """FLOPs of a convolution in one step and its sweep: the design's closed form, counted."""
    images, channels, height, width = shape
    x, z = torch.rand(images, inputs, height, width), torch.rand(shape)
    weight = torch.rand(channels, inputs, 3, 3)

    def back(of_input: bool, of_weight: bool) -> Any:
        mask = [of_input, of_weight, False]
        return torch.ops.aten.convolution_backward(
            z, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
        )

    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.conv2d(x, weight, padding=1)  # z
        back(not first, True)  # dx, dW
        for _ in range(1 if first else 2):  # zdot: conv(x, Wdot), conv(xdot, W)
            torch.nn.functional.conv2d(x, weight, padding=1)
        for _ in range(1 if first else 2):  # dWdot: wgrad(x, dzdot), wgrad(xdot, dz)
            back(False, True)
        for _ in range(2):  # dxdot: dgrad(dzdot, W), dgrad(dz, Wdot)
            back(True, False)
    return counter.get_total_flops()


def test_flops_are_those_that_torch_counts() -> None:
    """A pass forgotten or counted twice, a layer left out, or the first step charged in full."""
    options = CompareSettings(
        channels=2, image_size=16, classes=3, width=4, depth=2, steps=3, images_per_class=2
    )
    first, second = passes((6, 4, 16, 16), 2, True), passes((6, 4, 8, 8), 4, False)
    linear = 9 * 2 * 6 * (4 * 4 * 4) * 3
    # The earliest step needs no tangent of a weight's gradient: 1 pass of 6, and 2 of 9.
    unused = first // 6 + second // 9 * 2 + linear // 9 * 2
    assert work(options).flops == 3 * (first + second + linear) - unused


def test_winograd_saves_where_it_applies() -> None:
    """A saving in the first layer or the linear one, or on an odd side as on an even one."""
    first, second, last = layers(CompareSettings(image_size=6, depth=2).student(), (3, 6, 6))
    assert first.winograd == first.multiplications == 3 * 128 * 9 * 36
    assert second.multiplications == 128 * 128 * 9 * 9
    assert second.winograd == 128 * 128 * 16 * 4  # a side of 3 takes two tiles
    assert last.winograd == last.multiplications == 128 * 10


def test_floor_takes_the_best_rates() -> None:
    """Times added up wrongly, bytes counted as floats, or the rates of a disturbed round."""
    options = CompareSettings(**TINY)
    done = work(options)
    plane, parameters = 4 * 8 * 8, options.student().num_parameters
    assert done.bytes == 4 * (9.25 * plane * 3 * 2 + 6 * parameters)
    found = floor(options, [(1e3, 50.0), (5e2, 100.0)])
    assert found["milliseconds"] == pytest.approx(done.flops + 10 * done.bytes)
    assert found["milliseconds_winograd"] == pytest.approx(done.flops_winograd + 10 * done.bytes)


def test_batches_are_those_of_the_unroll() -> None:
    """Work counted for batches of another size than an engine takes."""
    options = CompareSettings(classes=5, images_per_class=2, batch_size=4, steps=5)
    unused: Any = None
    problem = Problem(
        student=unused, theta=unused, target=unused, images=torch.zeros(10, 1), labels=unused,
        lr=unused, steps=5, weight=None, normaliser="start", batch_size=4, augment=None, window=5,
        seed=0,
    )  # fmt: skip
    assert options.samples() == [len(batch) for batch in problem.batches() if batch is not None]


def test_compare_flags_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A truncated unroll with a rank and a time, a right one without, or a file of another form."""
    wrong = Contender("module", options={"window": 1})
    monkeypatch.setattr(run, "CONTENDERS", {"module": CONTENDERS["module"], "wrong": wrong})
    target = tmp_path / "made" / "result.json"
    flags = [*FLAGS, "--repeats=2", "--seconds=0.01", "--weights", "--soft-labels", "--no-progress"]
    result = CliRunner().invoke(cli.app, ["compare", *flags, "--device=cpu", f"--json={target}"])
    assert result.exit_code == 0, result.output
    held = json.loads(target.read_text())
    assert set(held) == {"contenders", "floor", "problem", "machine", "versions"}
    right, bad = held["contenders"]
    assert (right["name"], bad["name"]) == ("module", "wrong")
    assert right["milliseconds"] > 0 and right["spread"] >= 0 and right["rounds"] == 2
    assert set(right["errors"]) == {"images", "lr", "labels", "weight"}
    assert right["error"] == max(right["errors"].values()) < 1e-5
    assert bad["milliseconds"] is None and bad["errors"]["images"] > 0.1
    assert "wrong: NOT RANKED, the gradient of" in result.stdout
    assert held["problem"]["truth"] == "reference" and held["problem"]["images"] == 3
    assert held["floor"]["milliseconds"] > held["floor"]["milliseconds_winograd"] * 0.99
    assert held["versions"]["torch"] == str(torch.__version__)


def test_every_contender_computes_the_same() -> None:
    """A contender under another name's engine, or a problem that differs from one to the next."""
    options = CompareSettings(**TINY, augment="flip")
    found = {
        name: dict(gradients(make_iteration(options, contender, CPU, torch.float64)()))
        for name, contender in CONTENDERS.items()
        if not contender.compile
    }
    for name in ("module", "fused"):
        errors = relative_errors(found[name], found["reference"])
        assert max(errors.values()) < 1e-10
    engines = {
        name: (contender.engine, contender.compile) for name, contender in CONTENDERS.items()
    }
    assert engines == {
        "reference": ("reference", False),
        "compiled": ("module", True),
        "module": ("module", False),
        "fused": ("fused", False),
    }


def test_a_changed_problem_is_another_one() -> None:
    """A sensitivity of zero because the change never reaches the images."""
    options = CompareSettings(**TINY)
    plain, other = (
        make_iteration(options, CONTENDERS["reference"], CPU, torch.float64, change).arguments[2]
        for change in (0.0, 1e-6)
    )
    moved = (other - plain).norm() / plain.norm()
    assert 1e-7 < moved < 1e-5


@pytest.mark.parametrize(
    ("error", "sensitivity", "failed"),
    [(9e-4, 0.0, False), (2e-3, 0.0, True), (2e-3, 5e-3, False), (math.nan, 1.0, True)],
)
def test_the_gate(error: float, sensitivity: float, failed: bool) -> None:
    """NaN passing as not above the limit; kinks failing a right engine; a wrong one excused."""
    errors = {"images": error, "lr": 1e-9}
    moved = {"images": sensitivity, "lr": sensitivity}
    row = make_row("fused", [0.001, 0.003, 0.002], 12.0, errors, 1e-3, moved)
    assert (row.milliseconds is None) == (row.failed is not None) == failed
    if not failed:
        assert row.milliseconds == 2.0 and row.spread == pytest.approx(1.0)
    else:
        assert "images" in str(row.failed)


def test_ratios_of_the_table() -> None:
    """A speed-up upside down, or one against a reference that failed."""
    right = make_row("fused", [0.01], 10.0, {"lr": 0.0}, 1e-3, {"lr": 0.0})
    about = {
        **CompareSettings().to_dict(),
        "images": 10,
        "truth": "module",
        "change": 1e-6,
        "sensitivity": {"lr": 1e-3},
    }
    rates = floor(CompareSettings(**TINY), [(1e9, 1e9)])
    for milliseconds, shown in ((0.04, ("4.00", "5.00")), (math.nan, ("-", "5.00"))):
        error = milliseconds if math.isnan(milliseconds) else 0.0
        slow = make_row("reference", [0.04], 50.0, {"lr": error}, 1e-3, {"lr": 0.0})
        found = Comparison(
            (slow, right), rates, about, {"device_name": "chip", "threads": 2}, {"torch": "2"}
        )
        (line,) = (line for line in found.table().splitlines() if line.startswith("fused"))
        cells = line.split()
        assert (cells[3], cells[5]) == shown
        json.dumps(found.to_dict(), allow_nan=False)
        assert found["fused"] is right


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"contenders": ["fast"]}, "contenders: got 'fast'; takes one of reference, compiled"),
        ({"contenders": []}, "contenders: got []"),
        ({"contenders": "fused"}, "contenders: got 'fused'"),
        ({"contenders": ["fused", "fused"]}, "contenders: got"),
        ({"steps": 0}, "steps: got 0"),
        ({"precision": "half"}, "precision: got 'half'; takes one of float32"),
        ({"augment": "blur"}, "augment: got 'blur'"),
        ({"image_size": 4, "depth": 5}, "depth: got 5"),
        ({"device": "tpu"}, "device: got 'tpu'"),
    ],
)
def test_a_wrong_argument_is_one_clear_error(keywords: dict[str, Any], told: str) -> None:
    """Processes started, or minutes spent, before the user is told."""
    with pytest.raises((TypeError, ValueError)) as failure:
        iadd_fast.compare(progress=False, **keywords)
    assert told in str(failure.value)


def test_an_unknown_setting_is_told() -> None:
    """A misspelt option ignored."""
    with pytest.raises(TypeError, match="image: no such setting; takes channels"):
        iadd_fast.compare(image=3)


def test_a_contender_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error without the contender's name, or a traceback on the command line."""
    monkeypatch.setattr(run, "CONTENDERS", {"odd": Contender("nonsense")})
    result = CliRunner().invoke(cli.app, ["compare", *FLAGS, "--no-progress"])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("iadd-fast: contender 'odd': ValueError: engine: got 'nonsense'")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import sys; print('no room', file=sys.stderr); sys.exit(3)", "status 3; it printed: no"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL (out of memory?) and printed no"),
    ],
)
def test_a_process_that_dies_says_why(code: str, told: str) -> None:
    """Waiting for ever for a dead process, or an error without its last words."""
    with (
        Process("fused", [sys.executable, "-c", code]) as process,
        pytest.raises(ContenderFailed) as failure,
    ):
        process.ask("time")
    assert "contender 'fused'" in str(failure.value)
    assert told in str(failure.value)


def test_an_interrupt_ends_the_processes() -> None:
    """Workers, or what they started, left behind by Ctrl-C."""
    code = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '60']);"
        "print('{\"answer\": %d}' % child.pid, flush=True); child.wait()"
    )
    with (
        pytest.raises(KeyboardInterrupt),
        Process("fused", [sys.executable, "-c", code]) as process,
    ):
        child = process.ask("begin")
        raise KeyboardInterrupt
    assert _ended(child)
    with pytest.raises(ProcessLookupError):
        os.kill(process._process.pid, 0)


def _ended(process: int) -> bool:
    """Whether it is gone, or dead and not yet collected by whoever adopted it."""
    stat = Path(f"/proc/{process}/stat")
    for _ in range(200):
        try:
            if stat.read_text().split()[2] in ("Z", "X"):
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_peak_memory_is_above_what_was_there() -> None:
    """The peak of earlier work counted, or a peak that is over by the end of a call missed."""
    before = torch.ones(50_000_000)
    del before
    peak = PeakMemory(CPU)
    held = torch.ones(20_000_000)
    del held
    assert 79 <= peak.megabytes() < 120
