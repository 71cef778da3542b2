from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from iadd_fast import seeds, students
from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit.material import Material
from iadd_fast.audit.privacy import privacy
from iadd_fast.data import Data, Split
from iadd_fast.data.transform import Identity
from iadd_fast.evaluation_networks import TrainedNetworks
from iadd_fast.report.pictures import Samples
from iadd_fast.report.sections.privacy import view

SHAPE = (1, 5, 5)
STUDENT = students.mlp(inputs=SHAPE, classes=2, width=8, depth=2)


def material() -> Material:
    """Untrained networks, a set that holds training records 3 and 6 themselves, one of noise."""
    images = torch.rand((240, *SHAPE), generator=seeds.generator(0, "test"))
    labels = torch.arange(240) % 2
    train, validation, test = (
        Split(images[a:b], labels[a:b]) for a, b in ((0, 100), (100, 120), (120, 240))
    )
    data = Data("noise", train, validation, test, ("<cat>", "dog"), Identity(), "f" * 64)

    def set_of(chosen: torch.Tensor, initial: str) -> DistilledSet:
        return DistilledSet(
            images=chosen,
            labels=torch.tensor([0, 1]),
            lr=0.1,
            class_names=data.class_names,
            transform=Identity(),
            student_spec=STUDENT.spec,
            config={"initial": initial, "seed": 0, "images_per_class": 1},
            data_fingerprint=data.fingerprint,
        )

    noise = set_of(torch.rand((2, *SHAPE), generator=seeds.generator(1, "test")), "noise")
    thetas = torch.stack([STUDENT.init(k) for k in range(3)])
    pairs = [(images[9 * k : 9 * k + 6], labels[9 * k : 9 * k + 6]) for k in range(3)]
    return Material(
        set_of(images[[6, 3]], "real"),
        data,
        train,
        validation,
        test,
        {
            name: TrainedNetworks(name, "mlp", STUDENT, thetas + shift, pairs)
            for shift, name in enumerate(("iadd", "random", "full", "<b>noise</b>"))
        },
        torch.device("cpu"),
        beside={"<b>noise</b>": noise},
    )


@pytest.fixture(scope="module")
def shown() -> tuple[dict[str, Any], dict[str, Any], str]:
    """What was measured, the view of it and the HTML."""
    found = material()
    measured = privacy(found)
    viewed = view(measured, Samples(found.distilled, found.data))
    environment = Environment(
        loader=PackageLoader("iadd_fast.report"), autoescape=True, undefined=StrictUndefined
    )
    return measured, viewed, environment.get_template("privacy.html").render(view=viewed)


class Elements(HTMLParser):
    """Every element with its attributes, and how many of each tag are open at the end."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: dict[str, int] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open[tag] = self.open.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        self.open[tag] -= 1

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_is_whole_and_readable(shown: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    """Breaks when ids repeat, a picture has no text, a name is not escaped or a tag stays open."""
    elements = Elements(shown[2])
    ids = [a["id"] for _, a in elements.found if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(identity and identity.startswith("privacy-") for identity in ids)
    svgs = elements.of("svg")
    assert len(svgs) == 9
    assert all(svg["role"] == "img" and re.search(r"\d", svg["aria-label"] or "") for svg in svgs)
    assert all(image["alt"] for image in elements.of("img"))
    assert len(elements.of("caption")) == len(elements.of("table")) == 9
    assert {tag for tag, count in elements.open.items() if count} <= {"img"}
    assert "&lt;b&gt;noise" in shown[2]
    assert "<b>noise" not in shown[2]


def test_copies_stand_first_beside_their_records(
    shown: tuple[dict[str, Any], dict[str, Any], str],
) -> None:
    """Breaks when the wrong record is shown, or a flagged copy after others."""
    measured, viewed, page = shown
    assert {(p["sample"], p["record"]) for p in measured["sets"]["iadd"]["pairs"][:2]} == {
        (0, 6),
        (1, 3),
    }
    for pair in viewed["pairs"][:2]:
        assert pair["synthetic"].source == pair["real"].source
        assert "values identical" in pair["note"]
    assert "Found: near copies of training records" in page
    assert all(pair["flagged"] for pair in measured["sets"]["iadd"]["pairs"][:2])


def test_tables_have_the_measured_numbers(
    shown: tuple[dict[str, Any], dict[str, Any], str],
) -> None:
    """Breaks when a row, a column or a population is taken for another."""
    measured, viewed, page = shown
    (target,) = (
        t
        for t in measured["membership"]["targets"]
        if (t["method"], t["population"]) == ("iadd", "training part")
    )
    (rows,) = (
        rows
        for caption, rows, _ in viewed["attacks"]
        if "the distilled set; members: " in caption and "training records" in caption
    )
    by_name = {row[0]: row for row in rows}
    entry = target["attacks"]["calibrated_loss"]
    assert by_name["calibrated loss"][1].startswith(f"{entry['auc']:.3f} (")
    assert by_name["calibrated loss"][2].startswith(f"{entry['control']['auc']:.3f} (")
    assert by_name["loss"][5:7] == ["not resolved", "not resolved"]
    assert by_name["distance"][4] == "does not apply"
    assert all(len(row) == len(viewed["attack_columns"]) for row in rows)
    (group,) = viewed["initialisation"]["groups"]
    assert [row[1] for row in group["distances"][1]] == ["real", "noise"]
    assert group["distances"][1][0][4].endswith(" of 2")
    assert group["leaks"][1][1][4:] == ["no real ones", "no real ones"]
    assert viewed["initialisation"]["text"] == "Not among them: kmeans."
    assert "--initial kmeans" in page
    for sentence in measured["verdict"] + measured["limits"]:
        assert len(sentence) > 40


def test_a_start_that_is_not_known_is_said(
    shown: tuple[dict[str, Any], dict[str, Any], str],
) -> None:
    """Breaks when a set without known first images gets figures of another, or an empty plot."""
    measured, _, _ = shown
    reason = "its first images: 'noise', which are no records"
    own = {**measured["sets"]["iadd"], "origin": None, "origin_reason": reason}
    swapped = {**measured, "sets": {**measured["sets"], "iadd": own}}
    found = material()
    origin = view(swapped, Samples(found.distilled, found.data))["origin"]
    assert origin["figure"] is None
    assert "'noise', which are no records" in origin["text"]
