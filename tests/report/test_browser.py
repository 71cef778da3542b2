"""Reports in a real browser: at the widths of a phone and a desk, light and dark, and printed."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver import Chrome, Keys  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402

from bench import screenshots  # noqa: E402
from iadd_fast.audit import influence  # noqa: E402
from tests.report import pages  # noqa: E402

KINDS = ("evaluation_only", "series", "images")
INSPECT = (Path(__file__).parent / "inspect.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    try:
        screenshots.programs()
    except FileNotFoundError as error:
        pytest.skip(f"browser tests: {error}")
    with screenshots.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def made(browser: Chrome, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages by kind; their influence is measured on trainings of two steps."""
    folder = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STEPS", "LEAST_STEPS", "CHECKED"):
            patch.setattr(influence, name, 2)
        return {kind: getattr(pages, kind)(folder / kind) for kind in KINDS}


def requests_of(browser: Chrome) -> list[str]:
    """Addresses that were asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def inspected(browser: Chrome) -> dict[str, list[str]]:
    return browser.execute_script(INSPECT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_at_every_width_and_scheme(
    browser: Chrome, made: dict[str, Path], kind: str
) -> None:
    """Breaks if something overflows, does not render, is cut off, pale, nameless or fetched."""
    grounds = set()
    browser.get_log("performance")
    browser.get_log("browser")
    for width in screenshots.WIDTHS:
        for scheme in ("light", "dark"):
            screenshots.show(browser, made[kind], width, scheme)
            faults = {name: found for name, found in inspected(browser).items() if found}
            assert not faults, f"{width} pixels, {scheme}"
            script = "return [innerWidth, getComputedStyle(document.body).backgroundColor]"
            seen, ground = browser.execute_script(script)
            assert seen == width
            grounds.add(ground)
    assert len(grounds) == 2
    requests = requests_of(browser)
    assert made[kind].resolve().as_uri() in requests
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("kind", KINDS)
def test_keyboard_and_screen_reader_find_everything(
    browser: Chrome, made: dict[str, Path], kind: str
) -> None:
    """Breaks if a link cannot be reached, a landmark is lost, or a table is none on a phone."""
    screenshots.show(browser, made[kind], 400)
    links = browser.execute_script(
        "return [...document.querySelectorAll('a[href], [tabindex=\"0\"]')]"
        ".map(e => e.getAttribute('href'))"
    )
    assert links[0] == "#content" and len(links) == 10
    reached = []
    for _ in links:
        ActionChains(browser).send_keys(Keys.TAB).perform()
        script = "const e = document.activeElement; return [e.getAttribute('href'), e.getBoundingClientRect().top]"  # noqa: E501
        address, top = browser.execute_script(script)
        reached.append(address)
        assert top >= 0
    assert reached == links
    browser.execute_cdp_cmd("Accessibility.enable", {})
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            role = node["role"]["value"]
            named.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    for role in ("banner", "main", "contentinfo"):
        assert len(named[role]) == 1, role
    assert named["navigation"] == ["Contents"]
    tags = "return ['table', 'tbody th', 'svg, img'].map(s => document.querySelectorAll(s).length)"
    tables, headers, drawn = browser.execute_script(tags)
    images = named.get("image", []) + named.get("img", [])
    assert len(images) == drawn and all(images)
    assert len(named["table"]) == tables and all(named["table"])
    assert len(named["rowheader"]) == headers
    browser.execute_cdp_cmd("Accessibility.disable", {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_can_be_printed(browser: Chrome, made: dict[str, Path], kind: str) -> None:
    """Breaks if printing fails, or a table of the desk is too wide for a sheet of A4."""
    screenshots.show(browser, made[kind], 718, "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    faults = inspected(browser)
    assert not faults["overflow"] and not faults["contrast"] and not faults["text"]
    sheet = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": True}
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", sheet)["data"])
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert printed.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", printed)) > 0


FAULTY: dict[str, Any] = {
    "overflow": '<div style="width: 500px">wide</div>',
    "figures": '<img alt="broken" src="data:image/png;base64,AAAA">',
    "text": '<svg viewBox="0 0 50 50" role="img" aria-label="s" width="50" height="50">'
    '<text x="40" y="20">outside</text></svg>',
    "names": '<svg viewBox="0 0 50 50" role="img" width="50" height="50"></svg>',
    "contrast": '<p style="color: #999">pale</p>',
    "headings": "<h3>too deep</h3>",
    "links": '<a href="#nowhere">nowhere</a>',
}


def test_the_inspection_finds_each_fault(browser: Chrome, tmp_path: Path) -> None:
    """Breaks if the checks above could not fail."""
    for name, body in {"nothing": "<h2>fine</h2><p>fine</p>", **FAULTY}.items():
        page = tmp_path / f"{name}.html"
        page.write_text(
            '<!DOCTYPE html><meta name="color-scheme" content="light dark">'
            f'<body style="margin: 0"><h1>page</h1>{body}'
        )
        screenshots.show(browser, page, 400)
        found = [kind for kind, faults in inspected(browser).items() if faults]
        assert found == ([] if name == "nothing" else [name])
    browser.get_log("performance")
    page = tmp_path / "remote.html"
    page.write_text('<img alt="far" src="https://example.invalid/a.png">')
    screenshots.show(browser, page, 400)
    assert "https://example.invalid/a.png" in requests_of(browser)
