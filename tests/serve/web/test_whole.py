"""One visit from end to end: an own video, its captions, a question, files to keep, and two pictures."""

from __future__ import annotations

from pathlib import Path

from tests.support.serve.browser import Page
from tests.support.serve.server import picture, write_clip


def test_a_visit_from_an_own_video_to_questions_about_two_pictures(page: Page, tmp_path: Path):
    page.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page.click("#tab-file")
    page.find("#file").send_keys(str(write_clip(tmp_path / "own.mp4", ["blue", "white", "green"])))
    page.wait(lambda: page.rows()[:1] == ["0:00.0 blue 1"])
    page.write("#prompt", "what now")
    page.wait(lambda: page.find("#prompt-send").is_enabled())
    page.click("#prompt-send")
    page.wait(lambda: page.rows("#transcript .answered"))
    page.wait(lambda: page.text("#status-text") == "Ready")
    assert page.rows() == ["0:00.0 blue 1", "0:01.0 white 3", "0:02.0 green 5"]
    page.click("#save-vtt")
    saved = tmp_path / "captions.vtt"
    page.wait(lambda: saved.exists() and saved.stat().st_size > 0)
    assert saved.read_text() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nblue 1\n\n"
        "00:00:01.000 --> 00:00:02.000\nwhite 3\n\n00:00:02.000 --> 00:00:04.000\ngreen 5\n"
    )
    page.click("#tab-ask")
    page.click("#use-frame")
    page.wait(lambda: page.count("#tray li") == 1)
    (tmp_path / "red.jpg").write_bytes(picture("red", kind="JPEG"))
    page.find("#picture-file").send_keys(str(tmp_path / "red.jpg"))
    page.wait(lambda: page.count("#tray li") == 2)
    page.write("#question", "what differs")
    page.click("#ask")
    page.wait(lambda: page.texts(".turn .answer") == ["green red what differs"])
    page.click("#tab-live")
    assert len(page.rows()) == 3, "the transcript is still there"
    assert page.problems() == []
