"""Questions about pictures in a real headless Chromium: several pictures, several turns, nothing lost."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from tests.support.serve.browser import Page
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import data_uri, picture, running, settings_with

DROPPED = """
const [selector, kind, bytes, name] = arguments;
const data = new DataTransfer();
data.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/png' }));
const carried = kind === 'paste' ? { clipboardData: data } : { dataTransfer: data };
const event = kind === 'paste' ? ClipboardEvent : DragEvent;
const how = { bubbles: true, cancelable: true, ...carried };
document.querySelector(selector).dispatchEvent(new event(kind, how));
"""


@pytest.fixture
def asking(page: Page) -> Page:
    page.wait(lambda: page.text("#model") != "…")
    page.click("#tab-ask")
    return page


@pytest.fixture
def slow(browser: Any) -> Iterator[tuple[Page, FakeEngine]]:
    """The page of an endpoint that takes its time for each word."""
    engine = FakeEngine(delay_s=0.3)
    with running(engine, settings_with(max_new_tokens=64)) as address:
        page = Page(browser, address)
        browser.get_log("browser")
        page.open()
        page.wait(lambda: page.text("#model") != "…")
        page.click("#tab-ask")
        yield page, engine


def add(page: Page, folder: Path, *colours: str) -> None:
    before = page.count("#tray li")
    for number, colour in enumerate(colours):
        path = folder / f"{colour}.png"
        path.write_bytes(picture(colour))
        page.find("#picture-file").send_keys(str(path))
        page.wait(lambda wanted=before + number + 1: page.count("#tray li") == wanted)


def ask(page: Page, question: str) -> str:
    """The answer, once it is whole."""
    turns = page.count(".turn")
    page.write("#question", question)
    page.click("#ask")
    page.wait(lambda: page.count(".turn[aria-busy=false]") == turns + 1)
    return page.texts(".turn .answer")[-1]


def test_a_question_about_two_pictures_and_a_further_one_that_refers_to_them(asking: Page, tmp_path: Path):
    add(asking, tmp_path, "red", "blue")
    assert ask(asking, "which is red") == "red blue which is red"
    assert "2 out" not in asking.text(".turn .account")
    assert "128 image tokens beside them" in asking.text(".turn .account")
    assert asking.count("#tray li") == 0
    assert asking.count(".turn .shown img") == 2, "the pictures stand with their question"
    assert ask(asking, "and the other") == "red blue and the other"
    add(asking, tmp_path, "green")
    assert ask(asking, "and this") == "red blue green and this"
    asking.screenshot("ask-1440")
    assert asking.problems() == []


def test_pictures_are_put_in_order_and_removed(asking: Page, tmp_path: Path):
    add(asking, tmp_path, "red", "blue", "green")
    asking.click("#tray li:nth-child(3) .earlier")
    assert asking.focused == "Move picture 2 earlier", "the focus goes with the picture"
    asking.click("#tray li:nth-child(1) .remove")
    assert asking.focused == "Remove picture 1"
    assert not asking.find("#tray li:nth-child(1) .earlier").is_enabled()
    assert ask(asking, "in order") == "green blue in order"


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_pictures_may_be_dropped_or_pasted(asking: Page, kind: str):
    place = "#talk" if kind == "drop" else "#question"
    asking.driver.execute_script(DROPPED, place, kind, list(picture("yellow")), "yellow.png")
    asking.wait(lambda: asking.count("#tray li") == 1)
    assert ask(asking, "what is it") == "yellow what is it"


def test_the_frame_of_the_video_may_be_asked_about(page: Page):
    page.wait(lambda: page.time > 0.1)
    video = "document.getElementById('video')"
    page.script(f"{video}.pause(), {video}.currentTime = 0.1")  # on a busy machine it plays on to the next
    page.wait(lambda: not page.script(f"{video}.seeking"))
    page.click("#tab-ask")
    page.click("#use-frame")
    page.wait(lambda: page.count("#tray li") == 1)
    assert ask(page, "what is this") == "red what is this"


def test_a_suggested_question_is_one_of_the_held_out_data_with_its_picture(asking: Page):
    asking.wait(lambda: asking.texts(".example") == ["what shape is it?"])
    asking.click(".example")
    asking.wait(lambda: asking.count("#tray li") == 1)
    asking.click("#ask")
    asking.wait(lambda: asking.texts(".turn .answer") == ["green what shape is it?"])
    assert not asking.find("#welcome").is_displayed()


def photo(width: int, height: int, orientation: int, kind: str) -> bytes:
    """Left half red, right half blue, with noise that no format packs, as from a camera held sideways."""
    pixels = np.frombuffer(os.urandom(width * height * 3), np.uint8).reshape(height, width, 3) // 8
    pixels[:, : width // 2, 0] += 200
    pixels[:, width // 2 :, 2] += 200
    image = Picture.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {"compress_level": 1}))
    return out.getvalue()


def test_a_photo_larger_than_the_endpoint_takes_is_made_smaller_and_upright(asking: Page, tmp_path: Path):
    path = tmp_path / "photo.png"
    path.write_bytes(photo(3400, 2400, 6, "PNG"))
    assert path.stat().st_size > 15_000_000
    asking.find("#picture-file").send_keys(str(path))
    asking.wait(lambda: asking.count("#tray li") == 1, 30)
    image = "document.querySelector('#tray img')"
    asking.wait(lambda: asking.script(f"{image}.naturalWidth"))
    assert asking.script(f"{image}.naturalWidth") < asking.script(f"{image}.naturalHeight") <= 1568
    assert asking.script(f"{image}.src.length") < 20 * 1024 * 1024 / 16
    top, bottom = asking.script(
        """((image) => {
          const canvas = document.createElement('canvas');
          [canvas.width, canvas.height] = [1, 2];
          canvas.getContext('2d').drawImage(image, 0, 0, 1, 2);
          const { data } = canvas.getContext('2d').getImageData(0, 0, 1, 2);
          return [[...data.slice(0, 3)], [...data.slice(4, 7)]];
        })(document.querySelector('#tray img'))"""
    )
    assert top[0] > 150 > top[2]
    assert bottom[2] > 150 > bottom[0]
    assert ask(asking, "what is it").endswith("what is it")
    assert asking.problems() == []


def test_a_small_picture_is_sent_as_it_is(asking: Page, tmp_path: Path):
    add(asking, tmp_path, "red")
    assert asking.script("document.querySelector('#tray img').src") == data_uri(picture("red"))


def test_what_is_no_picture_is_refused_by_its_name_and_the_others_are_kept(asking: Page, tmp_path: Path):
    (tmp_path / "notes.png").write_bytes(b"no picture")
    add(asking, tmp_path, "red")
    asking.find("#picture-file").send_keys(str(tmp_path / "notes.png"))
    asking.wait(lambda: "notes.png is no picture" in asking.text("#ask-status"))
    assert asking.count("#tray li") == 1
    add(asking, tmp_path, *["blue"] * 15)
    asking.find("#picture-file").send_keys(str(tmp_path / "red.png"))
    asking.wait(lambda: "at most 16 pictures" in asking.text("#ask-status"))
    assert asking.count("#tray li") == 16


def test_a_refused_question_comes_back_with_its_pictures(asking: Page, tmp_path: Path):
    add(asking, tmp_path, "red")
    ask(asking, "too long")
    assert "too long" in asking.text(".turn.failed .account")
    in_sight = "((e, l) => e.getBoundingClientRect().bottom <= l.getBoundingClientRect().bottom + 1)"
    reason = "document.querySelector('.failed .account'), document.getElementById('log')"
    assert asking.script(f"{in_sight}({reason})")
    assert asking.find("#question").get_attribute("value") == "too long"
    assert asking.count("#tray li") == 1
    assert ask(asking, "shorter") == "red shorter", "the refused turn is not part of the conversation"


def test_an_answer_can_be_stopped_and_the_conversation_goes_on(slow: tuple[Page, FakeEngine], tmp_path: Path):
    page, engine = slow
    add(page, tmp_path, "red")
    page.write("#question", " ".join(f"word{number}" for number in range(60)))
    page.click("#ask")
    page.wait(lambda: "word0" in page.text(".turn .answer"))
    assert page.find("#stop").is_displayed()
    page.keys("\ue00c")  # Escape
    page.wait(lambda: page.text(".turn .account") == "Stopped.")
    page.wait(lambda: engine.open_answers == 0)
    assert "word59" not in page.text(".turn .answer")
    assert ask(page, "again") == "red again"
    assert page.problems() == []


def test_a_new_conversation_forgets_the_old_one_even_while_it_is_answered(
    slow: tuple[Page, FakeEngine], tmp_path: Path
):
    page, engine = slow
    add(page, tmp_path, "red")
    page.write("#question", " ".join(["word"] * 60))
    page.click("#ask")
    page.wait(lambda: "word" in page.text(".turn .answer"))
    page.click("#clear")
    assert page.count(".turn") == 0
    assert page.find("#welcome").is_displayed()
    assert page.focused == "question"
    page.wait(lambda: engine.open_answers == 0 and page.find("#ask").is_displayed())
    add(page, tmp_path, "blue")
    assert ask(page, "what is it") == "blue what is it"


def test_an_answer_is_copied(asking: Page, tmp_path: Path):
    asking.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    add(asking, tmp_path, "green")
    ask(asking, "what is it")
    asking.click(".turn .copy")
    asking.wait(lambda: asking.text("#ask-status") == "Copied.")
    copied = asking.driver.execute_async_script(
        "const [done] = arguments; navigator.clipboard.readText().then(done, (error) => done(String(error)))"
    )
    assert copied == "green what is it"


def test_an_endpoint_that_is_gone_is_named(browser: Any, tmp_path: Path):
    with running(FakeEngine(), settings_with()) as address:
        page = Page(browser, address)
        page.open()
        page.wait(lambda: page.text("#model") != "…")
        page.click("#tab-ask")
    add(page, tmp_path, "red")
    ask(page, "anyone there?")
    assert page.text(".turn.failed .account") == "The endpoint does not answer. Is it still running?"
    assert page.find("#question").get_attribute("value") == "anyone there?"
