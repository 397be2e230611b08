"""The live page in a real headless Chromium: the clip plays and captions appear as they are made.

Set CASA_SCREENSHOTS to a folder to keep what the browser saw.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, picture, running, settings_with, write_clip
from tests.support.serve.subtitles import CAPTIONS, SRT, VTT

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed (the dev extra has it)"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with chromedriver on this machine"
)

T = TypeVar("T")
COLOURS = ["red", "green", "blue", "yellow"]
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
    "--window-size=1360,1240",
)


class Page:
    """What a visitor does and sees."""

    def __init__(self, driver, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self) -> None:
        self.driver.get(f"{self.url}/")

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """Visible text of every match, read in one step: the page changes between two."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText.trim())", selector
        )

    def count(self, selector: str) -> int:
        return len(self.driver.find_elements("css selector", selector))

    def script(self, source: str):
        return self.driver.execute_script(f"return {source}")

    @property
    def time(self) -> float:
        return self.script("document.getElementById('video').currentTime")

    def wait(self, condition: Callable[[], T], seconds: float = 10.0) -> T:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(
                    f"waited in vain; transcript {self.texts('#transcript li')}, console {self.problems()}"
                )
            time.sleep(0.05)
        return value

    def problems(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def screenshot(self, name: str) -> None:
        if folder := os.environ.get("CASA_SCREENSHOTS"):
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_clip(folder / "clip-1.mp4", COLOURS)
    write_clip(folder / "clip-2.mp4", ["white", "black"])
    return folder


@pytest.fixture(scope="module")
def url(clips: Path) -> Iterator[str]:
    with running(FakeEngine(), settings_with(demo_clips=str(clips))) as address:
        yield address


@pytest.fixture
def page(browser, url: str) -> Page:
    page = Page(browser, url)
    browser.get_log("browser")
    page.open()
    return page


def test_the_clip_plays_and_its_captions_appear_while_it_does(page: Page):
    page.wait(lambda: page.time > 0.2)
    page.wait(lambda: page.texts("#caption .line span"))
    assert page.time < 4.0, "the first words came while the clip was still playing"
    assert page.find("#status-text").text == "Live"
    assert page.find("#model").text == MODEL
    earlier = page.time
    page.wait(lambda: page.time > earlier + 1.0)
    page.wait(lambda: page.count("#transcript li time") == 4)
    page.screenshot("live")
    rows = [(row.split("\n")[0], row.split("\n")[1]) for row in page.texts("#transcript li")[:4]]
    assert rows == [(f"0:0{i}.0", f"{colour} {2 * i + 1}") for i, colour in enumerate(COLOURS)]
    page.wait(lambda: page.find("#status-text").text == "Ready")
    assert page.count(".track canvas") == 8, "one picture for every half second"
    assert page.texts(".track .word") == [f"{colour} {2 * i + 1}" for i, colour in enumerate(COLOURS)]
    assert page.find("#frames").text == "8"
    assert page.find("#images-kept").text == "1"
    assert int(page.find("#text-tokens").text) == 16
    assert float(page.find("#latency").text) < 1000
    assert page.texts("#transcript .note") == ["8 frames, 8 tokens said."]
    assert page.problems() == []


def test_another_clip_starts_over_and_pausing_stops_the_frames(page: Page):
    page.wait(lambda: page.count("#clips button") == 2)
    page.find("#clips button:nth-child(2)").click()
    page.wait(lambda: any("white 1" in row for row in page.texts("#transcript li")))
    page.find("#play").click()
    # The browser tells of the pause by an event of its own, a moment after the click.
    page.wait(lambda: page.find("#play").get_attribute("aria-label") == "Play")
    time.sleep(0.3)
    frames = page.find("#frames").text
    time.sleep(0.7)
    assert page.find("#frames").text == frames
    page.find("#play").click()
    page.wait(lambda: any("black" in row for row in page.texts("#transcript li")))
    assert not any("red" in row for row in page.texts("#transcript li"))
    assert page.problems() == []


def test_a_local_video_and_a_query_are_captioned(page: Page, tmp_path: Path):
    clip = write_clip(tmp_path / "mine.mp4", ["green", "red"])
    page.find("#tab-file").click()
    page.find("#file").send_keys(str(clip))
    page.wait(lambda: any("green 1" in row for row in page.texts("#transcript li")))
    page.find("#query").clear()
    page.find("#query").send_keys("I see")
    page.find("#query-form button").click()
    page.wait(lambda: any("I see green 1" in row for row in page.texts("#transcript li")))
    page.wait(lambda: any("I see red 3" in row for row in page.texts("#transcript li")))
    assert page.problems() == []


def test_a_video_whose_file_starts_late_begins_at_zero_with_its_first_picture(page: Page, tmp_path: Path):
    """Training and the caption client count so, too (tests/data/clean/test_video_cases.py)."""
    clip = write_clip(tmp_path / "late.mp4", ["green", "red"], start=5)
    page.find("#tab-file").click()
    page.find("#file").send_keys(str(clip))
    page.wait(lambda: any("red 3" in row for row in page.texts("#transcript li")))
    assert page.texts("#transcript li")[0].startswith("0:00")
    assert not any(row.startswith("0:05") for row in page.texts("#transcript li"))
    page.wait(lambda: 1.5 < float(page.script("document.getElementById('seek').max")) < 2.5)
    page.wait(lambda: page.script("document.getElementById('clock').value").startswith("0:01"))
    assert page.problems() == []


def test_the_camera_is_captioned_until_it_is_stopped(page: Page):
    page.find("#tab-camera").click()
    page.find("#camera").click()
    page.wait(lambda: int(page.find("#frames").text) >= 3 and page.texts("#transcript li time"))
    assert page.find("#status-text").text == "Live"
    page.find("#camera").click()
    page.wait(lambda: page.texts("#transcript .note"))
    assert page.problems() == []


def test_a_question_about_the_current_frame_or_an_upload_is_answered_in_words(page: Page, tmp_path: Path):
    page.wait(lambda: page.time > 0.1)
    page.find("#use-frame").click()
    page.find("#question").send_keys("what is this")
    page.find("#ask").click()
    page.wait(lambda: "text tokens" in page.find("#answer small").text)
    assert page.find("#answer p").text == "red what is this"
    upload = tmp_path / "blue.png"
    upload.write_bytes(picture("blue"))
    page.find("#picture-file").send_keys(str(upload))
    page.wait(lambda: page.script("document.getElementById('picture').naturalWidth") == 32)
    page.find("#ask").click()
    page.wait(lambda: page.texts("#answer article.newest p") == ["blue what is this"])
    page.screenshot("ask")
    assert page.problems() == []


def test_a_dark_scheme_and_a_narrow_screen_fit(page: Page):
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    page.wait(lambda: page.count("#transcript li time") >= 3)
    page.screenshot("dark")
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        assert page.script("document.documentElement.scrollWidth") <= 390
        page.screenshot("narrow")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_question_while_the_clip_runs_is_answered_among_its_captions(page: Page):
    page.wait(lambda: page.texts("#caption .line span"))
    page.find("#prompt").send_keys("what colour")
    page.wait(lambda: page.find("#prompt-send").is_enabled())
    page.find("#prompt-send").click()
    [answer] = page.wait(lambda: page.texts("#transcript .answered"))
    assert "what colour" in answer
    assert any(colour in answer for colour in COLOURS)
    assert page.find("#prompt").get_attribute("value") == ""
    page.screenshot("asked-while-it-runs")
    page.wait(lambda: page.find("#status-text").text == "Ready")
    assert page.find("#frames").text == "8", "an answer is no frame"
    assert not page.find("#prompt-send").is_enabled()
    assert page.problems() == []


def test_captions_become_subtitles_of_phrases(page: Page):
    captions = [{"time": time_s, "text": text} for time_s, text in CAPTIONS]
    script = (
        "const [captions, done] = arguments;"
        "import('/web/subtitles.js').then((own) => done([own.webVTT(captions), own.subRip(captions)]))"
    )
    assert page.driver.execute_async_script(script, captions) == [VTT, SRT]


def test_they_are_saved_from_the_page(page: Page, tmp_path: Path):
    page.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page.wait(lambda: page.find("#status-text").text == "Ready" and page.count("#transcript li time") == 4)
    for button, name in (("#save-vtt", "captions.vtt"), ("#save-srt", "captions.srt")):
        page.find(button).click()
        page.wait(lambda path=tmp_path / name: path.exists() and path.stat().st_size > 0)
    assert (tmp_path / "captions.vtt").read_text().startswith("WEBVTT\n\n00:00:00.000 --> ")
    assert "red 1" in (tmp_path / "captions.srt").read_text()
    assert page.problems() == []
