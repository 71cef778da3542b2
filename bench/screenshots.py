"""Screenshots of a report as a phone and a desk show it.

    python bench/screenshots.py demo/index.html --out docs/images/demo

writes ``demo-400.png`` and ``demo-1400.png``, in few colours, and only so much of the page from its
top that each stays below 400 kB. Needs Chromium and chromedriver; the page is opened without a
network.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

WIDTHS = (400, 1400)
MOST_BYTES = 400_000
#: Tallest page that is shown; a longer one is cut.
TALLEST = 12_000


def programs() -> tuple[str, str]:
    """Paths of Chromium and chromedriver.

    Raises:
        FileNotFoundError: one is not installed; the message says which.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    chromium = chromium or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing = "chromium" if chromium is None else "chromedriver"
        raise FileNotFoundError(f"{missing} is not installed (Debian: chromium, chromium-driver)")
    return chromium, driver


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Headless Chromium that can reach nothing but files, with its log of network and console."""
    chromium, driver = programs()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--proxy-server=127.0.0.1:9",
        "--window-size=1400,1000",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield opened
    finally:
        opened.quit()


def show(opened: webdriver.Chrome, page: Path, width: int, scheme: str = "light") -> None:
    """Open ``page`` in a window of ``width`` pixels and a ``light`` or ``dark`` scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    opened.get(page.resolve().as_uri())


def screenshot(opened: webdriver.Chrome, path: Path) -> None:
    """The page that is open, from its top, whole or as far as ``TALLEST`` and ``MOST_BYTES`` reach.

    Fewer colours are taken first (down to 32), then less of the height.
    """
    size = opened.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], TALLEST)}
    shot = opened.execute_cdp_cmd(
        "Page.captureScreenshot",
        {"format": "png", "captureBeyondViewport": True, "clip": {**clip, "scale": 1}},
    )
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    while True:
        for colours in (256, 64, 32):
            buffer = io.BytesIO()
            image.quantize(colours, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
            if buffer.tell() <= MOST_BYTES:
                path.write_bytes(buffer.getvalue())
                return
        image = image.crop((0, 0, image.width, image.height * 3 // 4))


def main() -> None:
    """Write one file for each width."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("page", type=Path, help="the index.html of a report")
    parser.add_argument("--out", type=Path, required=True, help="start of the files' names")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    options = parser.parse_args()
    if not options.page.is_file():
        sys.exit(f"page: no file at {options.page}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with browser() as opened:
        for width in WIDTHS:
            show(opened, options.page, width, options.scheme)
            path = options.out.with_name(f"{options.out.name}-{width}.png")
            screenshot(opened, path)
            with Image.open(path) as image:
                print(f"{path}: {path.stat().st_size:,} bytes, {image.width} x {image.height}")


if __name__ == "__main__":
    main()
