"""The page's section shows the numbers that were measured, whatever they are."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit.coverage import coverage
from iadd_fast.audit.material import Material
from iadd_fast.audit.representativeness import represent
from iadd_fast.data import Data, Split
from iadd_fast.data.transform import Identity
from iadd_fast.evaluation_networks import TrainedNetworks
from iadd_fast.report.pictures import Samples
from iadd_fast.report.sections.representativeness import ROWS, view
from iadd_fast.students import mlp

NASTY = "<b>$x_1$ & co"


def split(count: int, shape: tuple[int, ...], seed: int) -> Split:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(2).repeat(count)
    images = torch.randn(2 * count, *shape, generator=draw) + labels.view(-1, *[1] * len(shape))
    return Split(images, labels)


def measured(networks: int, shape: tuple[int, ...]) -> tuple[Material, dict[str, Any]]:
    student = mlp(inputs=shape, classes=2, width=4, depth=2)
    train, test = split(40, shape, 0), split(60, shape, 1)
    names = (NASTY, "b")
    none = Split(train.images[:0], train.labels[:0])
    data = Data("d", train, none, test, names, Identity(), "f" * 64)
    distilled = DistilledSet(
        images=train.images[:4],
        labels=train.labels[:4],
        lr=0.1,
        class_names=names,
        transform=Identity(),
        student_spec=student.spec,
        data_name="d",
        data_fingerprint="f" * 64,
    )
    trained = {
        method: TrainedNetworks(
            method,
            "mlp",
            student,
            torch.stack([student.init(10 * place + k) for k in range(networks)]),
            [(distilled.images, distilled.labels)] * networks,
        )
        for place, method in enumerate(("iadd", "full", "random"))
    }
    own = Material(distilled, data, train, none, test, trained, torch.device("cpu"))
    slices = {NASTY: [f"{NASTY} {index % 30}" for index in range(120)]}
    return own, represent(own, slices)


def page(own: Material, found: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("iadd_fast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("representativeness.html")
    return template.render(view=view(found, Samples(own.distilled, own.data)))


@pytest.mark.parametrize(("networks", "shape"), [(2, (1, 4, 4)), (1, (2, 9))])
def test_the_page_shows_what_was_measured(networks: int, shape: tuple[int, ...]) -> None:
    """Breaks when a number is another's, a name is not escaped or ids repeat; also for series."""
    own, found = measured(networks, shape)
    text = page(own, found)
    overall = found["overall"]
    cells = []
    for method in ("full", "distilled", "random"):
        one = overall["accuracy"][method]
        cells.append(f"{one['value']:.1f} ({one['low']:.0f} to {one['high']:.0f})")
        assert cells[-1] in text
    first = view(found, Samples(own.distilled, own.data))["slices"][0]
    assert first[:5] == ["all test samples", "120", *cells]
    assert first[5].startswith(f"{overall['gap']['value']:+.1f} (")
    for method in ("full", "distilled"):
        assert f"{found['calibration'][method]['ece']['value']:.3f}" in text
    assert f"{found['coverage']['figures']['coverage']['value']:.3f}" in text
    assert f"{found['coverage']['kernel']['largest_p']:.3f}" in text
    assert NASTY not in text
    assert "&lt;b&gt;$x_1$ &amp; co" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    drawings = re.findall(r"<svg [^>]*>", text)
    assert len(drawings) >= 3
    assert all('role="img"' in one and 'aria-label="' in one for one in drawings)
    assert all('alt="test sample' in one for one in re.findall(r"<img [^>]*>", text))
    assert text.count("<table") == text.count("<caption>")


def test_long_lists_are_cut_and_said_to_be() -> None:
    """Breaks when hundreds of groups fill the page, or groups that are not resolved go missing."""
    own, found = measured(2, (1, 4, 4))
    row = dict(found["slices"]["rows"][0], resolved=True)
    blurred = dict(row, resolved=False, group="blurred")
    found["slices"]["rows"] = [row] * 60 + [blurred] * 30
    shown = view(found, Samples(own.distilled, own.data))
    assert len(shown["slices"]) == ROWS + 1
    assert f"{ROWS} of 60 resolved groups" in shown["slices_note"]
    assert len(shown["unresolved"]) == 10
    assert "10 of 30 groups" in shown["unresolved_caption"]


def test_without_coverage_the_reason_is_given() -> None:
    """Breaks when a page cannot be written because one part could not be measured."""
    own, found = measured(1, (1, 4, 4))
    own.trained["full"].thetas[:] = float("nan")
    found["coverage"] = coverage(own)
    found["rare"].update(samples=[], indices=[], count=0)
    text = page(own, found)
    assert text.count("no full-data network gives features that are finite") == 2
    assert "There are none." in text
