from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from iadd_fast import seeds, students
from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit.material import Material
from iadd_fast.audit.membership import excess, membership
from iadd_fast.audit.origins import initial_records
from iadd_fast.audit.populations import imbalance, records_of
from iadd_fast.audit.privacy import privacy
from iadd_fast.audit.privacy_words import is_unresolved
from iadd_fast.audit.scores import scores_of
from iadd_fast.data import Data, Split
from iadd_fast.data.transform import Identity
from iadd_fast.evaluation_networks import TrainedNetworks
from iadd_fast.synthetic import initial_images
from iadd_fast.training import train

CLASSES = 3
SHAPE = (1, 4, 4)
STUDENT = students.mlp(inputs=SHAPE, classes=CLASSES, width=24, depth=2)


def split(count: int, seed: int, signal: float = 0.0) -> Split:
    """Noise, plus ``signal`` times a pattern of the class; labels in turn."""
    generator = seeds.generator(seed, "test")
    labels = torch.arange(count) % CLASSES
    patterns = torch.eye(CLASSES).repeat(1, 6)[:, :16].view(CLASSES, *SHAPE)
    return Split(
        torch.randn((count, *SHAPE), generator=generator) + signal * patterns[labels], labels
    )


def data_of(train_part: Split, test: Split, validation: int = 30) -> Data:
    cut = len(train_part) - validation
    return Data(
        "noise",
        train_part.subset(range(cut)),
        train_part.subset(range(cut, len(train_part))),
        test,
        ("a", "b", "c"),
        Identity(),
        "f" * 64,
    )


def set_of(data: Data, images: Tensor, labels: Tensor, **config: Any) -> DistilledSet:
    return DistilledSet(
        images=images,
        labels=labels,
        lr=0.1,
        class_names=data.class_names,
        transform=data.transform,
        student_spec=STUDENT.spec,
        config=config,
        data_fingerprint=data.fingerprint,
    )


def distilled_of(
    data: Data, per_class: int = 2, noise: float = 0.0, initial: str = "real"
) -> DistilledSet:
    """The images that a run starts from, with ``noise`` on top."""
    images, labels = initial_images(data, per_class, initial, 5)
    moved = noise * torch.randn(images.shape, generator=seeds.generator(9, "moved"))
    return set_of(
        data,
        images + moved,
        labels,
        initial=initial,
        seed=5,
        images_per_class=per_class,
        importance={"name": "uniform"},
    )


def networks(
    method: str,
    sets: list[tuple[Tensor, Tensor]],
    epochs: int,
    first: int = 0,
) -> TrainedNetworks:
    thetas = [
        train(
            STUDENT, STUDENT.init(first + k), *pair, lr=0.2, epochs=epochs, seed=k, batch_size=128
        )
        for k, pair in enumerate(sets)
    ]
    return TrainedNetworks(method, "mlp", STUDENT, torch.stack(thetas), sets)


def material_of(
    data: Data,
    distilled: DistilledSet,
    epochs: dict[str, int],
    count: int = 2,
    beside: dict[str, DistilledSet] | None = None,
) -> Material:
    everything = data.all_training()
    subsets = []
    for k in range(count):
        order = torch.randperm(len(everything), generator=seeds.generator(k, "subset"))
        part = everything.subset(order[:15])
        subsets.append((part.images, part.labels))
    test = data.test
    assert test is not None
    every = {"iadd": distilled, **(beside or {})}
    trained = {
        name: networks(name, [(entry.images, entry.labels)] * count, epochs.get("iadd", 0))
        for name, entry in every.items()
    }
    trained["random"] = networks("random", subsets, epochs.get("random", 0), first=50)
    full = [(everything.images, everything.labels)] * count
    trained["full"] = networks("full", full, epochs.get("full", 0), first=90)
    return Material(
        distilled,
        data,
        data.train,
        data.validation,
        test,
        trained,
        torch.device("cpu"),
        beside=beside or {},
    )


def target(found: dict[str, Any], method: str, population: str) -> dict[str, Any]:
    (entry,) = (
        t for t in found["targets"] if (t["method"], t["population"]) == (method, population)
    )
    return entry


def test_scores_are_their_formulas() -> None:
    """Breaks when a sign is turned, the label's own term is left in, or log(1 - p) is taken of p.

    The confidence has to hold where the probability rounds to 1.
    """
    outputs = torch.tensor([[1.0, -0.5, 0.3], [0.2, 2.0, -1.0], [90.0, 0.0, 1.0]])
    labels = torch.tensor([2, 1, 0])
    p = outputs.double().softmax(1)
    found = scores_of(outputs, labels)
    rows = torch.arange(3)
    assert found["loss"] == pytest.approx(
        -F.cross_entropy(outputs.double(), labels, reduction="none").numpy()
    )
    for row in range(2):
        y = int(labels[row])
        wrong = sum(p[row, c] * torch.log(1 - p[row, c]) for c in range(3) if c != y)
        wanted = (1 - p[row, y]) * torch.log(p[row, y]) + wrong
        assert found["entropy"][row] == pytest.approx(float(wanted))
    own = p[rows, labels][:2]
    assert found["confidence"][:2] == pytest.approx((own / (1 - own)).log().numpy())
    assert found["confidence"][2] == pytest.approx(90.0 - np.log(1 + np.e), rel=1e-9)


def test_members_are_drawn_in_the_proportions_of_the_test_part() -> None:
    """Breaks when a class that is rarer in the test part gives an attacker an edge by itself."""
    data = data_of(split(330, 0), split(90, 1))
    test = data.test
    assert test is not None
    skewed = test.subset([i for i in range(90) if int(test.labels[i]) > 0 or i < 30])
    material = material_of(replace(data, test=skewed), distilled_of(data), {})
    records = records_of(material, [])
    members = material.train.labels[records.real[records.drawn]]
    assert imbalance(members, skewed.labels[records.others], CLASSES) < 0.02
    assert imbalance(torch.tensor([0, 0]), torch.tensor([0, 1]), 2) == pytest.approx(0.5)


def test_test_records_that_training_has_are_left_out() -> None:
    """Breaks when a duplicate counts as a non-member, or as not held by a network that had it."""
    data = data_of(split(120, 0), split(60, 1))
    test = data.test
    assert test is not None
    test.images[:4] = data.train.images[10:14]
    data.train.images[20] = data.train.images[21]
    material = material_of(data, distilled_of(data), {})
    part = data.train.subset([20, 3, 4])
    pair = (part.images, part.labels)
    random = TrainedNetworks(
        "random", "mlp", STUDENT, material.trained["random"].thetas, [pair] * 2
    )
    trained = {**material.trained, "random": random}
    records = records_of(replace(material, trained=trained), [torch.tensor([20, 21])])
    assert records.duplicates == 4
    assert records.others.tolist() == list(range(4, 60))
    assert records.held[0, records.positions(torch.tensor([20, 21]))].all()
    assert not records.held[0, len(records.real) :].any()


def test_networks_on_other_data_are_refused() -> None:
    """Breaks when images that are not records get the number of some record."""
    data = data_of(split(120, 0), split(60, 1))
    material = material_of(data, distilled_of(data), {})
    foreign = networks("random", [(split(9, 7).images, split(9, 7).labels)] * 2, 0)
    trained = {**material.trained, "random": foreign}
    with pytest.raises(ValueError, match=r"trained\['random'\]: 9 of 9 images"):
        membership(replace(material, trained=trained), {})


def test_an_overfit_student_is_found_out_and_an_untrained_one_is_not() -> None:
    """Breaks when members and non-members are exchanged, or networks are paired wrongly.

    Labels of noise are learnt by heart; a third of the non-members is guessed right, surely.
    """
    data = data_of(split(120, 0), split(200, 1))
    material = material_of(data, distilled_of(data, noise=3.0), {"full": 300, "random": 30}, 3)
    found = membership(material, {})
    full = target(found, "full", "training part")
    for name, entry in full["attacks"].items():
        assert entry["auc"] > (0.85 if name.startswith("calibrated") else 0.9), name
        assert entry["interval"][0] > 0.8, name
    assert full["attacks"]["loss"]["control"]["holds"]
    value, (low, _), controlled = excess(full["attacks"][full["worst"]])
    assert not controlled
    assert 0.35 < low < value <= 0.5
    own = target(found, "random", "own subset")
    assert own["members"] + own["left_out"] == 45
    assert own["attacks"]["distance"]["auc"] == 1.0
    assert own["attacks"]["loss"]["auc"] > 0.9
    untrained = target(found, "iadd", "training part")
    low, high = untrained["attacks"]["loss"]["adjusted"]
    assert low < 0.5 < high
    assert untrained["attacks"]["loss"]["against_full"]["interval"][1] < -0.3
    rates = full["attacks"]["loss"]["tpr"]
    assert [rate["tpr"] for rate in rates] == [None, None]
    assert rates[1]["reason"] == "200 non-members; takes at least 1,000"


def test_the_control_of_a_subset_is_the_other_network() -> None:
    """Breaks when a network that was trained on the members, or is attacked, is its own control."""
    data = data_of(split(150, 0), split(90, 1))
    material = material_of(data, distilled_of(data), {"random": 60})
    random = material.trained["random"]
    entry = target(membership(material, {}), "random", "own subset")
    assert entry["references"] == 1
    aucs = []
    for own, other in ((0, 1), (1, 0)):
        images, labels = random.sets[own]
        held = [any(torch.equal(image, kept) for kept in random.sets[other][0]) for image in images]
        new = torch.tensor([not twice for twice in held])
        parts = [(images[new], labels[new]), (material.test.images, material.test.labels)]
        members, others = (
            scores_of(STUDENT.apply(random.thetas[other], x), y)["loss"] for x, y in parts
        )
        truth = np.r_[np.ones(len(members)), np.zeros(len(others))]
        aucs.append(roc_auc_score(truth, np.r_[members, others]))
    assert entry["attacks"]["loss"]["control"]["auc"] == pytest.approx(np.mean(aucs), abs=1e-6)


def test_a_shift_between_training_and_test_is_not_called_membership() -> None:
    """Breaks without the control: harder test records look like non-members of any network."""
    data = data_of(split(330, 0, signal=1.5), split(300, 1, signal=0.3))
    clean = split(30, 11, signal=1.5)
    distilled = set_of(data, clean.images, clean.labels)
    material = material_of(data, distilled, {"iadd": 60, "random": 60, "full": 10}, count=3)
    found = privacy(material)
    entry = target(found["membership"], "iadd", "training part")["attacks"]["loss"]
    assert entry["interval"][0] > 0.6
    assert not entry["control"]["holds"]
    assert abs(entry["control"]["difference"]) < 0.06 < entry["auc"] - 0.5
    assert excess(entry)[2]
    assert any("differ by themselves" in sentence for sentence in found["verdict"])


def test_first_images_that_stay_are_flagged_and_found() -> None:
    """Breaks when the copies, their records or the first images are not the right ones."""
    data = data_of(split(150, 0), split(90, 1))
    near, far = distilled_of(data, noise=0.05), distilled_of(data, noise=30.0)
    places, reason = initial_records(near, data)
    assert reason == ""
    assert places is not None
    assert torch.equal(data.train.images[places], distilled_of(data).images)
    found = privacy(material_of(data, near, {}, count=3, beside={"far": far}))
    own, other = found["sets"]["iadd"], found["sets"]["far"]
    assert own["flagged"] == 6
    assert own["spaces"]["pixels"]["samples"]["record"] == places.tolist()
    flagged = [pair for pair in own["pairs"] if pair["flagged"]]
    assert {(pair["sample"], pair["record"]) for pair in flagged} >= set(enumerate(places.tolist()))
    assert all(pair["correlation"] > 0.98 for pair in flagged)
    origin = own["origin"]["spaces"]["pixels"]
    assert origin["rank"] == [1] * 6
    assert origin["first_interval"][0] == pytest.approx(0.025 ** (1 / 6), abs=1e-6)
    expected = (near.images - data.train.images[places]).flatten(1).norm(dim=1)
    assert origin["moved"] == pytest.approx(expected.tolist(), rel=1e-5)
    assert other["spaces"]["pixels"]["flagged"] == 0
    assert max(other["origin"]["spaces"]["pixels"]["rank"]) > 1
    first = target(found["membership"], "iadd", "initial images")
    assert first["members"] == 6
    assert first["attacks"]["distance"]["auc"] == 1.0
    assert "Found: near copies of training records" in found["verdict"][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.config.update(initial="noise"), "'noise', which are no records"),
        (lambda d: d.config.pop("initial"), "not recorded"),
        (lambda d: d.config.update(images_per_class=3), "6 samples, not 3 of each class"),
        (lambda d: setattr(d, "data_fingerprint", "0" * 64), "other data"),
        (lambda d: d.config.pop("seed"), "lacks images_per_class or seed"),
    ],
)
def test_first_images_are_not_made_up(
    change: Callable[[DistilledSet], object], reason: str
) -> None:
    """Breaks when a configuration that does not fit still names records as first images."""
    data = data_of(split(150, 0), split(30, 1))
    distilled = distilled_of(data)
    change(distilled)
    places, told = initial_records(distilled, data)
    assert places is None
    assert reason in told


def test_sets_that_differ_in_first_images_only_are_compared() -> None:
    """Breaks when a set of other settings is put into the comparison, or what lacks is not said."""
    data = data_of(split(150, 0), split(40, 1))
    noise = distilled_of(data, initial="noise")
    other = distilled_of(data, initial="kmeans")
    other.config["importance"] = {"name": "adaptive"}
    material = material_of(data, distilled_of(data), {}, beside={"noise": noise, "other": other})
    found = privacy(material)["initialisation"]
    assert found["compared"] == ["iadd", "noise"]
    assert found["others"] == {"other": ["importance"]}
    assert found["missing"] == ["kmeans"]
    assert found["commands"][0].endswith("--initial kmeans")


@pytest.mark.parametrize("validation", [0, 30])
def test_one_network_soft_labels_and_a_missing_class_are_json(validation: int) -> None:
    """Breaks when a value is NaN or a tensor, or the figures depend on more than the seed."""
    data = data_of(split(120, 0), split(60, 1), validation)
    test = data.test
    assert test is not None
    data.test = test.subset([i for i in range(60) if i % CLASSES != 2])
    distilled = distilled_of(data, noise=1.0)
    distilled.labels = torch.full((6, CLASSES), 1 / CLASSES)
    material = material_of(data, distilled, {"full": 5}, count=1)
    found = privacy(material)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert privacy(material) == found
    assert (found["control"] is None) == (validation == 0)
    own = target(found["membership"], "random", "own subset")
    assert own["references"] == 0
    assert own["attacks"]["loss"]["control"] is None
    assert "calibrated_loss" not in own["attacks"]
    assert found["membership"]["non_members"] == 40


def test_too_few_test_records_are_an_error() -> None:
    """Breaks when everything is measured first and the variance of one record is asked for."""
    data = data_of(split(120, 0), split(3, 1))
    test = data.test
    assert test is not None
    test.images[:2] = data.train.images[:2]
    with pytest.raises(ValueError, match="data: got 1 test records"):
        privacy(material_of(data, distilled_of(data), {}))


@pytest.mark.parametrize(
    ("low", "high", "unresolved"),
    [(-0.3, 0.4, True), (-0.04, 0.06, False), (0.1, 0.5, False), (-0.5, -0.1, False)],
)
def test_an_interval_that_holds_everything_is_no_finding(
    low: float, high: float, unresolved: bool
) -> None:
    """Breaks when ten records that could say nothing are reported as an attack that fails."""
    assert is_unresolved(low, high) is unresolved
