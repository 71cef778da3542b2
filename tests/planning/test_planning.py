"""A plan against what then happens: steps, bytes on disk, memory, time; and what it advises."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import iadd_fast
from iadd_fast import evaluation as evaluation_module
from iadd_fast import expert_training, validation
from iadd_fast.artifacts.files import write_json
from iadd_fast.comparison.memory import STATUS
from iadd_fast.distillation_run import Distillation
from iadd_fast.fused.training import FusedTrainer
from iadd_fast.planning import DataShape, Plan
from iadd_fast.planning.budget import Adviser, Budget
from iadd_fast.planning.job import Job
from iadd_fast.planning.measurements import Measurements
from iadd_fast.planning.prediction import EVALUATION, EXPERTS, OUTER, VALIDATIONS, predict
from iadd_fast.planning.writing import MIB
from iadd_fast.unroll.fused_inputs import StepInputs

ATTEMPTS = 3


@dataclass
class Stage:
    """What a stage did: operations by name, bytes left, processor seconds."""

    counts: Counter[str]
    disk: int
    seconds: float


def run_stages(data: iadd_fast.Data, job: Job, out: Path) -> dict[str, Stage]:
    """The three jobs themselves, their operations counted by wrapping them."""
    counts: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:

        def wrap(where: Any, name: str, called: str) -> None:
            function = getattr(where, name)

            def counted(*positional: Any, **keywords: Any) -> Any:
                counts[called] += 1
                return function(*positional, **keywords)

            patch.setattr(where, name, counted)

        wrap(FusedTrainer, "step", "training steps")
        for module in (expert_training, validation, evaluation_module):
            wrap(module, "accuracy", "tests")
        wrap(Distillation, "outer_step", "outer steps")
        wrap(Distillation, "validate", "validations")
        wrap(Distillation, "save_checkpoint", "checkpoints")
        wrap(StepInputs, "of", "inputs")
        quiet: dict[str, Any] = {"device": "cpu", "progress": False}
        evaluated_as = job.evaluation.to_dict()
        del evaluated_as["architectures"]

        def evaluated() -> None:
            distilled = iadd_fast.DistilledSet.load(out / "distilled.safetensors")
            found = iadd_fast.evaluate(distilled, data, **evaluated_as, **quiet)
            write_json(out / "evaluation.json", found.to_dict())

        jobs: dict[str, Callable[[], object]] = {
            "experts": lambda: iadd_fast.train_experts(
                data, job.student, out / "experts", **job.experts.to_dict(), **quiet
            ),
            "distill": lambda: iadd_fast.distill(
                data, out / "experts", 1, out=out, **job.distill.to_dict(), **quiet
            ),
            "evaluate": evaluated,
        }
        stages = {}
        for name, run in jobs.items():
            counts.clear()
            before, began = bytes_below(out), time.process_time()
            run()
            taken = time.process_time() - began
            stages[name] = Stage(Counter(counts), bytes_below(out) - before, taken)
    return stages


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def real(
    data: iadd_fast.Data, planned: Plan, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Stage]:
    return run_stages(data, planned.job, tmp_path_factory.mktemp("run"))


def test_steps_are_those_of_the_run(planned: Plan, real: dict[str, Stage]) -> None:
    """A count that forgets the last, smaller batch, the test before the first epoch, the validation
    or checkpoint of the last iteration, or the untimed step ahead of every row."""
    told = planned.prediction
    assert told[EXPERTS].steps == real["experts"].counts
    outer, validations = told[OUTER].steps, told[VALIDATIONS].steps
    done = real["distill"].counts
    assert {name: done[name] for name in ("outer steps", "checkpoints")} == {
        name: outer[name] for name in ("outer steps", "checkpoints")
    }
    # Each inner step takes its samples once forth and once back.
    assert done["inputs"] == 2 * outer["inner steps"]
    assert {name: done[name] for name in validations} == validations
    assert told[EVALUATION].steps == real["evaluate"].counts


def test_disk_is_what_is_written(planned: Plan, real: dict[str, Stage]) -> None:
    """A snapshot, the velocities of a checkpoint, the transform or the log left out.

    Headers differ by the digits of their numbers: at most 100 bytes an expert, 1 KiB for set,
    checkpoint and log together and 1 KiB for evaluation.json. A snapshot has 6 KiB.
    """
    told = planned.prediction
    assert abs(told[EXPERTS].disk - real["experts"].disk) < 100 * planned.job.experts.count + 200
    distill = told[OUTER].disk + told[VALIDATIONS].disk
    assert abs(distill - real["distill"].disk) < max(1024, 0.05 * real["distill"].disk)
    assert abs(told[EVALUATION].disk - real["evaluate"].disk) < 1024


def test_time_is_about_what_it_takes(
    planned: Plan, real: dict[str, Stage], data: iadd_fast.Data, tmp_path: Path
) -> None:
    """A stage counted twice or not at all, an epoch taken for a step, milliseconds for seconds.

    It looks at a clock because that is what a plan is about (the issue asks for it): at the
    processor seconds of one thread, which other work on the machine does not lengthen much, with a
    factor of 3 either way and up to three attempts.
    """
    told = predict(planned.job, planned.measured, clock="processor")
    wanted = {
        "experts": told[EXPERTS].seconds.middle,
        "distill": told[OUTER].seconds.middle + told[VALIDATIONS].seconds.middle,
        "evaluate": told[EVALUATION].seconds.middle,
    }
    stages = real
    for attempt in range(ATTEMPTS):
        off = {name: stages[name].seconds / wanted[name] for name in wanted}
        if all(1 / 3 < factor < 3 for factor in off.values()):
            return
        stages = run_stages(data, planned.job, tmp_path / str(attempt))
    pytest.fail(f"taken over predicted: {off}")


MEASURED = """
import json, re, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
import iadd_fast
def read(field):
    return 1024 * int(re.search(field + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
base = read("VmRSS")
data = iadd_fast.load_data(sys.argv[1])
iadd_fast.train_experts(
    data, "convnet:width=8", sys.argv[2], count=1, epochs=1, device="cpu", progress=False
)
print(json.dumps([base, read("VmHWM")]))
"""


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc here")
def test_memory_is_about_what_it_takes(tmp_path: Path) -> None:
    """Data, the reading of it or what a stage holds left out: a factor of 1.5, without the imports.

    The data are 74 MB of float32 and 18 MB of pixels; reading them is the peak here.
    """
    draw = np.random.default_rng(0)
    count = 5000
    images = draw.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(count) % 10
    np.savez(
        tmp_path / "images.npz",
        train_images=images, train_labels=labels,
        test_images=images[:1000], test_labels=labels[:1000],
    )  # fmt: skip
    told = iadd_fast.plan(
        DataShape(count, (3, 32, 32), 10), student="convnet:width=8", device="cpu",
        experts={"count": 1}, distill={"iterations": 2, "steps": 1, "expert_epochs": 1,
        "max_start_epoch": 0}, evaluate={"networks": 1, "baselines": (), "full": False},
        probe_seconds=0.01, progress=False,
    ).prediction  # fmt: skip
    paths = [str(tmp_path / "images.npz"), str(tmp_path / "experts")]
    command = [sys.executable, "-c", MEASURED, *paths]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    base, peak = json.loads(found)
    factor = (told[EXPERTS].memory - base) / (peak - base)
    assert 1 / 1.5 < factor < 1.5, (told[EXPERTS].memory, base, peak)


def test_a_plan_is_json_and_a_table(planned: Plan) -> None:
    """NaN in the JSON, a stage without a row, or totals that are not the sum of the stages."""
    held = json.loads(json.dumps(planned.to_dict(), allow_nan=False))
    stages = held["prediction"]["stages"]
    assert [stage["name"] for stage in stages] == [EXPERTS, OUTER, VALIDATIONS, EVALUATION]
    middle = sum(stage["seconds"]["middle"] for stage in stages)
    assert held["prediction"]["seconds"]["middle"] == pytest.approx(middle)
    assert held["prediction"]["disk"] == sum(stage["disk"] for stage in stages)
    table = planned.table()
    assert all(stage["name"] in table for stage in stages)
    assert "50 outer steps, 200 inner steps, 3 checkpoints" in table


def adviser(
    planned: Plan, budget: Budget, job: Job | None = None, outer: Callable[[Job], int] | None = None
) -> Adviser:
    def measure_outer(other: Job) -> Measurements:
        assert outer is not None
        peak = outer(other)
        changed = {**planned.measured.outer, "peak": peak, "host_peak": peak}
        return replace(planned.measured, outer=changed)

    return Adviser(job or planned.job, planned.measured, budget, False, measure_outer)


def test_what_fits_needs_no_advice(planned: Plan) -> None:
    """Advice against a budget that is kept."""
    assert adviser(planned, Budget(60, 10_000, 1_000)).advice() == []


def test_advice_on_time_is_the_most_that_fits(planned: Plan) -> None:
    """Iterations or experts that do not fit after all, or fewer than would."""
    job, measured = planned.job.changed({"experts": {"epochs": 2}}), planned.measured
    whole = predict(job, measured)
    limit = whole.seconds.high - 0.5 * whole[OUTER].seconds.high
    budget = Budget(minutes=limit / 60)
    advice = adviser(planned, budget, job).advice()
    (iterations,) = (one for one in advice if "distill" in one.changes)
    found = iterations.changes["distill"]["iterations"]
    assert iterations.changes == {"distill": {"iterations": found}}
    assert 1 <= found < job.distill.iterations
    for number, over in ((found, []), (found + 1, ["minutes"])):
        again = predict(job.changed({"distill": {"iterations": number}}), measured)
        assert budget.over(again) == over
    assert iterations.prediction == predict(job.changed(iterations.changes), measured)
    assert f"iterations {found:,} instead of 50" in iterations.sentence
    for one in advice:
        assert one.prediction is not None
        assert budget.over(one.prediction) == []


def test_advice_takes_from_everything_where_it_must(planned: Plan) -> None:
    """Silence where no single setting is enough, and hope where nothing is."""
    job, measured = planned.job, planned.measured
    least = predict(
        job.changed({
            "distill": {"iterations": 1},
            "experts": {"count": 1, "epochs": 2},
            "evaluate": {"full": False},
        }),
        measured,
    )  # fmt: skip
    (advice,) = adviser(planned, Budget(minutes=least.seconds.high * 1.001 / 60)).advice()
    assert advice.changes["distill"]["iterations"] < 10
    # Epochs past max_start_epoch + expert_epochs go first: nothing looks at them.
    assert advice.changes["experts"] == {"epochs": 2, "count": 1}
    assert advice.changes["evaluate"] == {"full": False}
    (advice,) = adviser(planned, Budget(minutes=least.seconds.high * 0.9 / 60)).advice()
    assert advice.prediction is None
    assert "does not fit" in advice.sentence


def test_advice_on_disk_counts_the_experts(planned: Plan) -> None:
    """Experts that do not fit on the disk, or a budget too small for one taken for one."""
    one = predict(planned.job.changed({"experts": {"count": 1}}), planned.measured).disk_peak
    two = predict(planned.job.changed({"experts": {"count": 2}}), planned.measured).disk_peak
    (advice,) = adviser(planned, Budget(disk=(two + 10) / MIB)).advice()
    assert advice.changes["experts"]["epochs"] == 2
    job = replace(planned.job, experts=replace(planned.job.experts, epochs=2))
    short = predict(job.changed({"experts": {"count": 2}}), planned.measured).disk_peak
    (advice,) = adviser(planned, Budget(disk=(short + 10) / MIB), job).advice()
    assert advice.changes == {"experts": {"count": 2}}
    (advice,) = adviser(planned, Budget(disk=0.5 * (2 * one - two) / MIB)).advice()
    assert advice.prediction is None
    assert "with one expert it takes" in advice.sentence


def test_advice_on_memory_is_measured(planned: Plan) -> None:
    """A memory_budget that was not measured, leaves the budget, or is of no use."""
    asked: list[int | None] = []

    def outer(job: Job) -> int:
        asked.append(job.distill.memory_budget)
        return base + (job.distill.memory_budget or 0) * MIB

    base = max(planned.prediction[name].memory for name in (EXPERTS, EVALUATION, VALIDATIONS))
    full = {**planned.measured.outer, "peak": base + 256 * MIB, "host_peak": base + 256 * MIB}
    heavy = replace(planned, measured=replace(planned.measured, outer=full))
    limit = predict(planned.job, heavy.measured).memory / MIB - 156
    (advice,) = adviser(heavy, Budget(memory=limit), outer=outer).advice()
    assert advice.prediction is not None
    budget = advice.changes["distill"]["memory_budget"]
    assert asked == [0, budget]
    assert 98 <= budget <= 101
    assert advice.prediction.memory <= limit * MIB
    (advice,) = adviser(heavy, Budget(memory=50), outer=outer).advice()
    assert advice.prediction is None
    assert "no setting of the distillation makes less" in advice.sentence


def test_a_module_of_ones_own_is_measured_here(data: iadd_fast.Data) -> None:
    """A student that no other process can build is refused, or another measured in its place."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    found = iadd_fast.plan(
        data, student=iadd_fast.students.from_module(network),
        distill={"iterations": 2, "steps": 1, "validation_epochs": 1, "augment": "none"},
        experts={"count": 1, "augment": "none"}, device="cpu", progress=False, probe_seconds=0.01,
        evaluate={"networks": 1, "baselines": (), "full": False},
    )  # fmt: skip
    assert found.job.student.num_parameters == 64 * 4 + 4
    # Five snapshots of 260 parameters, and the headers.
    assert 0 < found.prediction[EXPERTS].disk - 5 * 260 * 4 < 2048
