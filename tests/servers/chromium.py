"""A real browser without a window: Debian's Chromium, driven by Selenium."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager

BINARY, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

MISSING = "" if BINARY and DRIVER else "no Chromium here: apt-get install chromium chromium-driver"

SWITCHES = (
    "--headless=new", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--force-device-scale-factor=1",
    "--disable-dev-shm-usage", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",  # WebGL
    "--disable-background-networking", "--disable-component-update", "--disable-sync",  # no calls home
    "--disable-quic",
)  # fmt: skip


@contextmanager
def browsing(width=1280, height=900, *, dark=False, still=False, downloads=None):
    """Open a browser.

    Args:
        width: of the page, px; below 500 it is a phone.
        height: of the page, px.
        dark: whether the person prefers dark colors.
        still: whether the person prefers less motion.
        downloads: folder that files go to.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BINARY
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for switch in (*SWITCHES, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(switch)
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            driver.set_page_load_timeout(30)
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            preferences = {"color-scheme": "dark" if dark else "light"}
            preferences["reduced-motion"] = "reduce" if still else "no-preference"
            media = [{"name": f"prefers-{name}", "value": value} for name, value in preferences.items()]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
            if downloads is not None:
                allowed = {"behavior": "allow", "downloadPath": str(downloads)}
                driver.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
            yield driver
        finally:
            driver.quit()
