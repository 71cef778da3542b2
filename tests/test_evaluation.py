from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iadd_fast import evaluation as module
from iadd_fast import students
from iadd_fast.artifacts import DistilledSet
from iadd_fast.augment import Augmentation
from iadd_fast.data import Data, Split
from iadd_fast.data.transform import Identity, Standardise
from iadd_fast.evaluation import evaluate
from iadd_fast.evaluation_rows import Evaluation, EvaluationRow

CLASSES = 4
SPEC = {"name": "mlp", "inputs": [1, 4, 4], "classes": CLASSES, "width": 16, "depth": 2}
SMALL: dict[str, Any] = {"networks": 2, "epochs": 20, "full_epochs": 3, "progress": False}


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Well separated classes: class c is bright in row c."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(count)
    images = 0.1 * torch.rand(len(labels), 1, 4, 4, generator=generator)
    images[torch.arange(len(labels)), 0, labels] += 1.0
    return images, labels


def small_data() -> Data:
    return Data(
        name="rows",
        train=Split(*samples(8, seed=1)),
        validation=Split(*samples(2, seed=2)),
        test=Split(*samples(10, seed=3)),
        class_names=("a", "b", "c", "d"),
        transform=Identity(),
        fingerprint="f" * 64,
    )


def small_set(lr: float = 0.5) -> DistilledSet:
    images, labels = samples(2, seed=4)
    return DistilledSet(
        images=images,
        labels=labels,
        lr=lr,
        weight=None,
        class_names=("a", "b", "c", "d"),
        transform=Identity(),
        student_spec=SPEC,
        augment=None,
        config={},
        seed=0,
        versions={},
        data_name="rows",
        data_fingerprint="f" * 64,
        summary={},
    )


class Recorder:
    """Stands in for training: keeps a call per network and returns their theta as they came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        monkeypatch.setattr(module, "train_many", self)

    def __call__(
        self, student: Any, thetas: Tensor, sets: list[tuple[Tensor, Tensor]], **options: Any
    ) -> Tensor:
        for theta, (images, labels) in zip(thetas, sets, strict=True):
            self.calls.append(
                {"student": student, "theta": theta, "images": images, "labels": labels, **options}
            )
        return thetas


def accuracies(result: Evaluation) -> dict[tuple[str, str], list[float]]:
    return {(row.method, row.architecture): row.accuracies for row in result.rows}


def test_a_good_set_is_learned_and_alpha_is_the_rate_really_used() -> None:
    """Breaks if another rate than the set's own is trained with: at 1e-12 nothing moves."""
    options: dict[str, Any] = {**SMALL, "networks": 5, "baselines": (), "full": False}
    learned = evaluate(small_set(), small_data(), **options).rows[0]
    still = evaluate(small_set(lr=1e-12), small_data(), **options).rows[0]
    assert learned.mean > 95.0
    assert still.mean < 50.0


def test_the_protocol_is_that_of_mtt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a method trains with another rate, momentum, decay, augmentation or epoch count."""
    recorder = Recorder(monkeypatch)
    distilled = replace(small_set(lr=0.03), augment="flip")
    evaluate(distilled, small_data(), networks=1, epochs=7, full_epochs=3, progress=False)
    got = [
        (call["lr"], call["epochs"], len(call["images"]), call["batch_size"])
        for call in recorder.calls
    ]
    real = (0.01, 7, 8, 256)
    assert got == [(0.03, 7, 8, 256), real, real, real, (0.01, 3, 40, 256)]
    for call in recorder.calls:
        assert (call["momentum"], call["weight_decay"], call["decay"]) == (0.9, 5e-4, True)
        assert call["augment"] == Augmentation.parse("flip")


def test_augment_can_be_another_one_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if augment= is ignored in favour of the set's own."""
    recorder = Recorder(monkeypatch)
    distilled = replace(small_set(), augment="flip")
    for augment in (None, "crop"):
        evaluate(
            distilled, small_data(), augment=augment, baselines=(), full=False, networks=1,
            progress=False,
        )  # fmt: skip
    assert [call["augment"] for call in recorder.calls] == [None, Augmentation.parse("crop")]


def test_real_images_come_from_the_training_and_validation_part_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Breaks if a baseline or the full run sees the test part, or full leaves validation out."""
    recorder = Recorder(monkeypatch)
    data = small_data()
    evaluate(small_set(), data, networks=1, progress=False)
    pool = torch.cat([data.train.images, data.validation.images])
    assert torch.equal(recorder.calls[-1]["images"], pool)
    for call in recorder.calls[1:4]:
        matches = (call["images"][:, None] == pool[None]).flatten(2).all(2)
        assert matches.any(1).all()
        assert call["labels"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_random_is_drawn_anew_for_each_network_and_herding_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Breaks if the spread of "random" is that of one lucky draw."""
    recorder = Recorder(monkeypatch)
    evaluate(
        small_set(), small_data(), networks=2, baselines=("random", "herding"), full=False,
        progress=False,
    )  # fmt: skip
    _, _, first, second, herding_first, herding_second = (c["images"] for c in recorder.calls)
    assert not torch.equal(first, second)
    assert torch.equal(herding_first, herding_second)


def test_every_method_starts_from_the_same_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the networks differ between methods, or are not different from one another."""
    recorder = Recorder(monkeypatch)
    evaluate(small_set(), small_data(), networks=2, baselines=("herding",), progress=False)
    theta = [call["theta"] for call in recorder.calls]
    assert torch.equal(theta[0], theta[2]) and torch.equal(theta[0], theta[4])
    assert torch.equal(theta[1], theta[3]) and torch.equal(theta[1], theta[5])
    assert not torch.equal(theta[0], theta[1])


def test_same_seed_same_numbers_whatever_else_is_measured() -> None:
    """Breaks if a number depends on a global generator or on what was measured before it."""
    alone = evaluate(small_set(lr=0.02), small_data(), "mlp", baselines="herding", **SMALL)
    torch.manual_seed(123)
    beside = evaluate(small_set(lr=0.02), small_data(), ("mlp:width=4", "mlp"), **SMALL)
    together = accuracies(beside)
    assert all(together[key] == value for key, value in accuracies(alone).items())
    other = evaluate(small_set(lr=0.02), small_data(), seed=1, **SMALL)
    assert accuracies(other) != together


def test_the_own_name_is_the_student_the_set_was_distilled_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Breaks if a set of a narrow student is evaluated on the default width."""
    recorder = Recorder(monkeypatch)
    own = students.mlp(inputs=(1, 4, 4), classes=CLASSES, width=16, depth=2)
    wider = students.mlp(inputs=(1, 4, 4), classes=CLASSES, width=20, depth=2)
    for architectures in (None, "mlp", ("mlp",), "mlp:width=20,depth=2"):
        evaluate(
            small_set(), small_data(), architectures, baselines=(), full=False, networks=1,
            progress=False,
        )  # fmt: skip
    sizes = [call["student"].num_parameters for call in recorder.calls]
    assert sizes == [own.num_parameters] * 3 + [wider.num_parameters]


def test_several_architectures_and_a_student_of_ones_own() -> None:
    """Breaks if rows are filed under the wrong architecture or a user's module is refused."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))

    linear = students.from_module(build, {"name": "linear"})
    result = evaluate(small_set(), small_data(), ("mlp", "convnet", linear), full=False, **{
        **SMALL, "networks": 1, "epochs": 2})  # fmt: skip
    assert result.architectures == ["mlp", "convnet", "linear"]
    assert [row.method for row in result.rows] == ["iadd", "random", "herding", "k_center"] * 3


def test_data_of_another_normalisation_is_moved_into_the_space_of_the_set() -> None:
    """Breaks if test images are fed in the space of the data (accuracy falls to chance)."""
    data = small_data()
    assert data.test is not None
    wanted = evaluate(small_set(), data, **SMALL)
    transform = Standardise(torch.tensor([5.0]), torch.tensor([0.01]))

    def move(split: Split) -> Split:
        return Split(transform.apply(split.images), split.labels)

    moved = replace(
        data,
        transform=transform,
        train=move(data.train),
        validation=move(data.validation),
        test=move(data.test),
    )
    got = evaluate(small_set(), moved, **SMALL)
    assert wanted.row("iadd", "mlp").mean > 95.0  # type: ignore[union-attr]
    for row, other in zip(wanted.rows, got.rows, strict=True):
        assert row.mean == pytest.approx(other.mean, abs=5.0)


def test_seconds_are_of_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight seconds for four networks that trained together; breaks when they are not divided."""
    ticks = iter([100.0, 108.0])
    monkeypatch.setattr(module, "_clock", lambda _: next(ticks))
    result = evaluate(
        small_set(), small_data(), networks=4, epochs=1, baselines=(), full=False, progress=False
    )
    assert [row.seconds for row in result.rows] == [2.0]


def test_sizes_of_each_method() -> None:
    """Breaks if bytes leave the labels out, or a baseline has another size than the set."""
    result = evaluate(small_set(), small_data(), **{**SMALL, "networks": 1, "epochs": 1})
    one = 16 * 4 + 8
    assert [(row.method, row.images, row.bytes) for row in result.rows] == [
        ("iadd", 8, 8 * one),
        ("random", 8, 8 * one),
        ("herding", 8, 8 * one),
        ("k_center", 8, 8 * one),
        ("full", 40, 40 * one),
    ]
    assert all(row.seconds > 0 for row in result.rows)


def test_soft_labels_are_trained_on() -> None:
    """Breaks if float labels are turned into class numbers or refused."""
    hard = small_set()
    soft = replace(hard, labels=nn.functional.one_hot(hard.labels, CLASSES).float())
    options: dict[str, Any] = {**SMALL, "baselines": (), "full": False}
    assert evaluate(soft, small_data(), **options).rows[0].mean > 95.0
    flat = replace(soft, labels=torch.full((8, CLASSES), 0.25))
    assert evaluate(flat, small_data(), **options).rows[0].mean < 60.0


def test_row_statistics_are_those_of_mtt() -> None:
    """Breaks if the spread is the sample standard deviation (it would be 1.414...)."""
    row = EvaluationRow("iadd", "convnet", [61.0, 63.0], 1.5, 100, 10)
    assert (row.mean, row.std) == (62.0, 1.0)


def test_dict_round_trip_and_table() -> None:
    """Breaks if a field is lost on the way to JSON and back, or a column of the table shifts."""
    result = Evaluation([EvaluationRow("iadd", "mlp", [61.0, 63.0], 1.5, 1600, 10)], {"seed": 3})
    value = json.loads(json.dumps(result.to_dict()))
    assert value["rows"][0]["mean"] == 62.0 and value["rows"][0]["std"] == 1.0
    assert Evaluation.from_dict(value) == result
    head, line = result.table().splitlines()
    assert line.split() == ["iadd", "mlp", "62.00", "±", "1.00", "2", "1.50", "10", "1,600"]
    assert head.index("bytes") + len("bytes") == len(line)
    with pytest.raises(ValueError, match="evaluation: got something"):
        Evaluation.from_dict({"accuracy": {}})


def test_a_set_of_other_data_warns_and_its_own_does_not() -> None:
    """Breaks if a set evaluated on the wrong data passes in silence."""
    options: dict[str, Any] = {**SMALL, "epochs": 1, "baselines": (), "full": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(small_set(), small_data(), **options)
    with pytest.warns(UserWarning, match="distilled from other data"):
        evaluate(replace(small_set(), data_fingerprint="0" * 64), small_data(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architectures": ("mlp", "transformer")}, "transformer"),
        ({"architectures": ("mlp", "mlp")}, "architectures: got 'mlp' twice"),
        ({"architectures": ()}, "architectures: got none"),
        ({"baselines": ("random", "best")}, "baselines: got 'best'; takes one of random"),
        ({"networks": 0}, "networks: got 0"),
        ({"epochs": 0}, "epochs: got 0"),
        ({"baseline_lr": 0.0}, "baseline_lr: got 0.0"),
    ],
)
def test_bad_arguments_are_named_before_any_training(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    """Breaks if an unknown name is found only after hours of training."""
    recorder = Recorder(monkeypatch)
    with pytest.raises(ValueError, match=message):
        evaluate(small_set(), small_data(), progress=False, **options)
    assert recorder.calls == []


def test_data_that_do_not_fit_are_refused() -> None:
    """Breaks if a set is trained for other classes or shapes than it is tested on."""
    data = small_data()
    with pytest.raises(ValueError, match="without a test part"):
        evaluate(small_set(), replace(data, test=None))
    fewer = replace(small_set(), class_names=("a", "b", "c"), images=torch.zeros(6, 1, 4, 4),
                    labels=torch.arange(3).repeat_interleave(2))  # fmt: skip
    with pytest.raises(ValueError, match="got 4 classes; the distilled set has 3"):
        evaluate(fewer, data)
    with pytest.raises(ValueError, match=r"samples of shape \(1, 4, 4\); .* \(1, 8, 8\)"):
        evaluate(replace(small_set(), images=torch.zeros(8, 1, 8, 8)), data)
    big = replace(small_set(), images=torch.zeros(44, 1, 4, 4),
                  labels=torch.arange(4).repeat_interleave(11))  # fmt: skip
    with pytest.raises(ValueError, match="per_class: got 11; class 0 has only 10 images"):
        evaluate(big, data)
