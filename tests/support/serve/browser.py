"""A headless Chromium, and the live page as a visitor sees it.

Set CASA_SCREENSHOTS to a folder to keep what the browser saw.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--window-size=1440,900",
)

T = TypeVar("T")


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser of its own; the test is skipped where there is none."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed (the dev extra has it)"
    )
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """What a visitor does and sees."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self) -> None:
        self.driver.get(f"{self.url}/")

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def write(self, selector: str, text: str) -> None:
        """Replace what a field holds."""
        self.find(selector).clear()
        self.find(selector).send_keys(text)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def texts(self, selector: str) -> list[str]:
        """Visible text of every match, read in one step: the page changes between two."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText.trim())", selector
        )

    def rows(self, selector: str = "#transcript li.said") -> list[str]:
        """Rows of the transcript, each on one line."""
        return [" ".join(row.split()) for row in self.texts(selector)]

    def count(self, selector: str) -> int:
        return len(self.driver.find_elements("css selector", selector))

    def script(self, source: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {source}", *arguments)

    def keys(self, *keys: str) -> None:
        """Press keys, whatever has the focus."""
        actions = pytest.importorskip("selenium.webdriver").ActionChains(self.driver)
        for key in keys:
            actions = actions.send_keys(key)
        actions.perform()

    @property
    def focused(self) -> str:
        """What has the focus: its id, or else its label or text."""
        return self.script(
            "((e) => e.id || e.getAttribute('aria-label') || e.innerText)(document.activeElement)"
        )

    @property
    def time(self) -> float:
        return self.script("document.getElementById('video').currentTime")

    def wait(self, condition: Callable[[], T], seconds: float = 10.0) -> T:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(
                    f"waited in vain; transcript {self.texts('#transcript li')}, "
                    f"turns {self.texts('.turn')}, console {self.problems()}"
                )
            time.sleep(0.05)
        return value

    def problems(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    @contextmanager
    def screen(self, width: int, height: int, *, dark: bool = False, motion: bool = True) -> Iterator[None]:
        """Another size and taste; a narrow one is a phone's."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "no-preference" if motion else "reduce"},
        ]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def screenshot(self, name: str) -> None:
        if folder := os.environ.get("CASA_SCREENSHOTS"):
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))
