"""Take the pictures of the explorer that the documentation shows.

python docs/screenshots.py demo/store
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
COLORS = 128
"""Of a picture: a palette makes its file a third as large."""

sys.path.insert(0, str(ROOT / "tests"))


def shoot(driver: Any, name: str) -> None:
    """Write what the browser shows."""
    from PIL import Image

    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(IMAGES / f"explorer-{name}.png", optimize=True)


def wait(driver: Any, script: str) -> None:
    """Wait until a script says that something is there, and for what moves to stand still."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 20).until(lambda d: d.execute_script(f"return {script}"))
    driver.execute_async_script("setTimeout(arguments[0], 600)")


LISTED = "!document.querySelector('[aria-busy]') && document.querySelectorAll('#rows tr').length > 0"


def main() -> None:
    """Serve a dataset and visit its pages."""
    from servers.chromium import browsing
    from servers.explorer import serving

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--trajectory", default="agm003287426-pbe")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    page = f"trajectory?id={options.trajectory}"
    frame = "frame = document.getElementById('frame'), frame.value = 12, frame.dispatchEvent(new Event('input'))"
    with serving(options.dataset) as served:
        with browsing(1280, 860) as driver:
            driver.get(f"{served.base}/?include=O&exclude=Fe&sort=drop&descending=1")
            wait(driver, LISTED)
            shoot(driver, "home")
            driver.get(f"{served.base}/{page}")
            wait(driver, "document.querySelector('[data-frame]')")
            wait(driver, frame)
            shoot(driver, "trajectory")
        with browsing(1280, 860, dark=True) as driver:
            driver.get(f"{served.base}/{page}")
            wait(driver, "document.querySelector('[data-frame]')")
            wait(driver, f"document.getElementById('forces').click(), {frame}")
            shoot(driver, "dark")
        with browsing(375, 740) as driver:
            driver.get(f"{served.base}/?include=O")
            wait(driver, LISTED)
            shoot(driver, "phone-home")
            driver.get(f"{served.base}/{page}")
            wait(driver, "document.querySelector('[data-frame]')")
            wait(driver, frame)
            shoot(driver, "phone-trajectory")


if __name__ == "__main__":
    main()
