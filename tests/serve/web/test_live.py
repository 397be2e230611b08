"""Live captions in a real headless Chromium: watched, shown again, asked about and saved."""

from __future__ import annotations

import time
import wave
from pathlib import Path
from typing import Any

import pytest

from tests.serve.web.conftest import COLOURS
from tests.support.serve.browser import Page
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, running, settings_with, write_clip
from tests.support.serve.subtitles import CAPTIONS, SRT, VTT

SAID = [f"0:0{i}.0 {colour} {2 * i + 1}" for i, colour in enumerate(COLOURS)]


def watch(page: Page, path: Path) -> None:
    page.click("#tab-file")
    page.find("#file").send_keys(str(path))


def captioned(page: Page) -> None:
    """Wait until the first sample was watched to its end."""
    page.wait(lambda: page.text("#status-text") == "Ready" and page.rows() == SAID)


def test_the_clip_plays_and_its_captions_appear_while_it_does(page: Page):
    page.wait(lambda: page.time > 0.2)
    page.wait(lambda: page.texts("#caption .line span"))
    assert page.time < 4.0, "the first words came while the clip was still playing"
    assert page.text("#status-text") == "Live"
    assert page.text("#model") == MODEL
    earlier = page.time
    page.wait(lambda: page.time > earlier + 1.0)
    page.wait(lambda: page.count("#transcript li.said") == 4)
    page.screenshot("live-1440")
    assert page.rows() == SAID
    captioned(page)
    assert page.count(".track canvas") == 8, "one picture for every half second"
    assert page.texts(".track .word") == [f"{colour} {2 * i + 1}" for i, colour in enumerate(COLOURS)]
    assert page.text("#frames") == "8"
    assert page.text("#images-kept") == "1"
    assert int(page.text("#text-tokens")) == 16
    assert float(page.text("#latency")) < 1000
    assert page.find("#memory-chart").get_attribute("aria-label").endswith("from 3 to 16 tokens")
    assert page.find("#lag-chart").get_attribute("aria-label").startswith("Lag of the last 8 captions: now ")
    assert page.texts("#transcript .note") == ["8 frames, 8 tokens said."]
    assert page.problems() == []


def test_another_clip_starts_over_and_pausing_stops_the_frames(page: Page):
    page.wait(lambda: page.texts("#clips button") == ["clip-1", "White, then black"])
    page.click("#clips button:nth-child(2)")
    assert page.find("#query").get_attribute("value") == "I watch"
    page.wait(lambda: any("I watch white 1" in row for row in page.rows()))
    page.click("#play")
    # The browser tells of the pause by an event of its own, a moment after the click.
    page.wait(lambda: page.find("#play").get_attribute("aria-label") == "Play")
    time.sleep(0.3)
    frames = page.text("#frames")
    time.sleep(0.7)
    assert page.text("#frames") == frames
    page.click("#play")
    page.wait(lambda: any("black" in row for row in page.rows()))
    assert not any("red" in row for row in page.rows())
    assert page.problems() == []


def test_going_back_shows_what_was_said_and_loses_nothing(page: Page):
    captioned(page)
    page.click(".track canvas:nth-of-type(3)")  # the first green one
    page.wait(lambda: 0.9 < page.time < 1.6)
    page.wait(lambda: page.texts("#caption .line") == ["green 3"])
    assert page.text("#status-text") == "Playback"
    page.click("#play")
    page.wait(lambda: page.texts("#caption .line") == ["blue 5"])
    page.screenshot("shown-again")
    page.click("#transcript li:nth-child(1) .at")
    page.wait(lambda: page.texts("#caption .line") == ["red 1"])
    page.wait(lambda: page.script("document.getElementById('video').ended"), 15)
    assert page.rows() == SAID
    assert page.text("#frames") == "8", "nothing was captioned twice"
    assert page.count(".track canvas") == 8
    assert page.problems() == []


def test_what_was_skipped_is_captioned_later_in_its_place(page: Page):
    page.wait(lambda: page.rows()[:1] == SAID[:1])
    page.script("(() => { const v = document.getElementById('video'); v.currentTime = 3.02; })()")
    page.wait(lambda: any("yellow" in row for row in page.rows()))
    page.wait(lambda: page.script("document.getElementById('video').ended"))
    page.script("(() => { const v = document.getElementById('video'); v.currentTime = 1.02; v.play(); })()")
    page.wait(lambda: all(colour in " ".join(page.rows()) for colour in COLOURS))
    times = [row.split()[0] for row in page.rows()]
    assert times == sorted(times)
    words = " ".join(page.rows())
    assert words.index("red") < words.index("green") < words.index("blue") < words.index("yellow")
    assert page.problems() == []


def test_words_of_one_phrase_are_one_row(page: Page):
    page.wait(lambda: page.text("#status-text") == "Live")
    script = """
    const done = arguments[arguments.length - 1];
    import('/web/transcript.js').then(({ Transcript }) => {
      const list = document.createElement('ol');
      const transcript = new Transcript(list, () => {});
      const said = [[1, 'a green'], [1.5, 'rectangle'], [2.5, 'a red'], [3, 'circle'], [0, 'see:']];
      for (const [time, text] of said) transcript.addCaption(time, text);
      done([...list.querySelectorAll('span')].map((row) => row.textContent));
    })"""
    said = page.driver.execute_async_script(script)
    assert said == ["see:", "a green rectangle", "a red circle"]


def test_a_local_video_and_a_query_are_captioned(page: Page, tmp_path: Path):
    watch(page, write_clip(tmp_path / "mine.mp4", ["green", "red"]))
    page.wait(lambda: any("green 1" in row for row in page.rows()))
    assert page.text("#file-name") == "mine.mp4"
    page.write("#query", "I see")
    page.click("#query-form button")
    page.wait(lambda: page.rows()[:1] == ["0:00.0 I see green 1"])
    page.wait(lambda: any("I see red 3" in row for row in page.rows()))
    assert page.problems() == []


def test_a_long_query_is_shown_whole(page: Page):
    page.write(
        "#query", "describe every shape that appears, its colour, and whether it moves to the left or right"
    )
    assert page.script("((e) => e.scrollHeight - e.clientHeight)(document.getElementById('query'))") <= 1


def test_a_video_whose_file_starts_late_begins_at_zero_with_its_first_picture(page: Page, tmp_path: Path):
    """Training and the caption client count so, too (tests/data/clean/test_video_cases.py)."""
    watch(page, write_clip(tmp_path / "late.mp4", ["green", "red"], start=5))
    page.wait(lambda: any("red 3" in row for row in page.rows()))
    assert page.rows()[0].startswith("0:00")
    assert not any(row.startswith("0:05") for row in page.rows())
    page.wait(lambda: 1.5 < float(page.script("document.getElementById('seek').max")) < 2.5)
    page.wait(lambda: page.script("document.getElementById('clock').value").startswith("0:01"))
    assert page.problems() == []


@pytest.mark.parametrize("name", ["notes.mp4", "empty.mp4", "cut.mp4", "sound.wav"])
def test_what_cannot_be_played_is_reported_once_and_the_next_video_plays(
    page: Page, tmp_path: Path, name: str
):
    broken = tmp_path / name
    broken.write_bytes({"notes.mp4": b"no video at all\n" * 99}.get(name, b""))
    if name == "cut.mp4":
        whole = write_clip(tmp_path / "whole.mp4", COLOURS).read_bytes()
        broken.write_bytes(whole[: len(whole) // 20])
    if name == "sound.wav":
        with wave.open(str(broken), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(16000))
    page.wait(lambda: page.text("#status-text") == "Live")
    watch(page, broken)
    page.wait(lambda: page.text("#status-text") == "Cannot play")
    time.sleep(0.5)
    [problem] = page.texts("#transcript .problem")
    assert ("sound but no picture" in problem) == (name == "sound.wav")
    assert page.texts("#transcript li") == [problem], "nothing is left of what was watched before"
    assert not page.find("#play").is_enabled()
    watch(page, write_clip(tmp_path / "good.mp4", ["blue"]))
    page.wait(lambda: page.rows() == ["0:00.0 blue 1"])
    assert page.texts("#transcript .problem") == []


@pytest.mark.parametrize(("tab", "button"), [("#tab-camera", "#camera"), ("#tab-screen", "#share")])
def test_a_camera_or_a_screen_is_captioned_until_it_is_stopped(page: Page, tab: str, button: str):
    page.wait(lambda: page.text("#status-text") == "Live")
    page.click(tab)
    page.click(button)
    page.wait(lambda: int(page.text("#frames")) >= 3 and page.rows())
    assert page.text("#status-text") == "Live"
    assert page.text(button).startswith("Stop")
    page.click("#tab-ask")
    frames = int(page.text("#frames") or page.script("document.getElementById('frames').textContent"))
    page.wait(lambda: int(page.script("document.getElementById('frames').textContent")) > frames)
    page.click("#tab-live")
    page.click(button)
    page.wait(lambda: page.texts("#transcript .note"))
    assert not page.text(button).startswith("Stop")
    assert page.problems() == []


def test_a_question_while_the_clip_runs_is_answered_among_its_captions(page: Page):
    page.wait(lambda: page.texts("#caption .line span"))
    page.write("#prompt", "what colour")
    page.wait(lambda: page.find("#prompt-send").is_enabled())
    page.click("#prompt-send")
    [answer] = page.wait(lambda: page.texts("#transcript .answered"))
    assert "what colour" in answer
    assert any(colour in answer for colour in COLOURS)
    assert page.find("#prompt").get_attribute("value") == ""
    page.screenshot("asked-while-it-runs")
    page.wait(lambda: page.text("#status-text") == "Ready")
    assert page.text("#frames") == "8", "an answer is no frame"
    assert not page.find("#prompt-send").is_enabled()
    assert page.problems() == []


def test_captions_become_subtitles_of_phrases(page: Page):
    captions = [{"time": time_s, "text": text} for time_s, text in CAPTIONS]
    script = """
    const [captions, done] = arguments;
    import('/web/subtitles.js').then((own) => {
      const phrases = [];
      for (const caption of captions) own.addCaption(phrases, caption);
      done([own.webVTT(phrases), own.subRip(phrases)]);
    })"""
    assert page.driver.execute_async_script(script, captions) == [VTT, SRT]


def test_they_are_saved_from_the_page(page: Page, tmp_path: Path):
    page.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    captioned(page)
    for button, name in (("#save-vtt", "captions.vtt"), ("#save-srt", "captions.srt")):
        page.click(button)
        page.wait(lambda path=tmp_path / name: path.exists() and path.stat().st_size > 0)
    assert (tmp_path / "captions.vtt").read_text().startswith("WEBVTT\n\n00:00:00.000 --> ")
    assert "red 1" in (tmp_path / "captions.srt").read_text()
    assert page.problems() == []


def test_an_endpoint_without_samples_offers_a_video_of_ones_own(browser: Any):
    with running(FakeEngine(), settings_with()) as address:
        page = Page(browser, address)
        page.open()
        page.wait(lambda: "no samples" in page.text("#clips"))
        page.click("#tab-ask")
        assert page.find("#question").get_attribute("placeholder") == "Ask about the pictures"
        assert page.problems() == []
