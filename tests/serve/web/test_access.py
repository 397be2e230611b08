"""The page with a keyboard alone, on every size of screen, in the dark, and without motion."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.serve.browser import Page
from tests.support.serve.server import picture, write_clip

TAB, SPACE, ENTER, ESCAPE, DELETE = "\ue004", " ", "\ue007", "\ue00c", "\ue017"
LEFT, RIGHT, HOME, END = "\ue012", "\ue014", "\ue011", "\ue010"
CONTRASTS = """((selectors) => {
  const parsed = (colour) => {
    const numbers = (colour.match(/[\\d.]+/g) || []).map(Number);
    return colour.startsWith('color(') ? numbers.map((v) => v * 255) : numbers; // mixed colours
  };
  const light = ([r, g, b]) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [x, y, z] = [r, g, b].map((v) => linear(v / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = parsed(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  return selectors.flatMap((selector) => [...document.querySelectorAll(selector)]).map((e) => {
    const [a, b] = [light(parsed(getComputedStyle(e).color)), light(ground(e))];
    return [e.id || e.className || e.tagName, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
})(arguments[0])
"""
OVERFLOWING = """[...document.querySelectorAll('main *, header *')].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width && e.offsetParent && box.right > innerWidth + 1 && !e.closest('.strip-scroll, .quiet');
}).map((e) => e.id || e.className)
"""


def tab_to(page: Page, wanted: str, most: int = 40) -> list[str]:
    """Press Tab until something has the focus; what was passed on the way."""
    passed: list[str] = []
    for _ in range(most):
        page.keys(TAB)
        passed.append(page.focused)
        seen = page.script(
            "document.activeElement.matches('body, .button.file input')"
            " || getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        )
        assert seen, f"the focus on {page.focused} can be seen"
        if page.focused == wanted:
            return passed
    pytest.fail(f"Tab does not reach {wanted}, only {passed}")


def test_everything_is_done_with_the_keyboard_alone(page: Page, tmp_path: Path):
    page.wait(lambda: page.rows())
    assert tab_to(page, "tab-clips")[:2] == ["tab-live", "Settings"]
    page.keys(RIGHT)
    assert page.focused == "tab-file"
    assert page.find("#panel-file").is_displayed()
    page.keys(END)
    assert page.focused == "tab-screen"
    page.keys(HOME, TAB, TAB, ENTER)  # the second clip
    page.wait(lambda: any("white" in row for row in page.rows()))
    tab_to(page, "play")
    page.keys(SPACE)
    page.wait(lambda: page.find("#play").get_attribute("aria-label") == "Play")
    page.keys(TAB)
    assert page.focused == "seek"
    tab_to(page, "query")
    page.keys("again", ENTER)  # as a button would
    page.wait(lambda: any("again white" in row for row in page.rows()))
    tab_to(page, "save-srt")
    tab_to(page, "prompt")
    page.wait(lambda: page.find("#prompt-send").is_enabled())
    page.keys("which", ENTER)
    page.wait(lambda: page.texts("#transcript .answered"))
    page.wait(lambda: page.text("#status-text") == "Ready")
    tab_to(page, "strip")
    page.keys(HOME)
    page.wait(lambda: page.time < 0.1)
    page.keys(RIGHT, RIGHT)
    page.wait(lambda: 0.9 < page.time < 1.1)
    page.keys(SPACE)
    page.wait(lambda: not page.script("document.getElementById('video').paused"))


def test_questions_are_asked_with_the_keyboard_alone(page: Page, tmp_path: Path):
    page.wait(lambda: page.text("#model") != "…")
    tab_to(page, "tab-live")
    page.keys(RIGHT)
    assert page.focused == "tab-ask"
    page.wait(lambda: page.count(".example") == 1)
    tab_to(page, "log")
    page.keys(TAB, ENTER)  # the sample
    page.wait(lambda: page.count("#tray li") == 1 and page.focused == "question")
    (tmp_path / "red.png").write_bytes(picture("red"))
    page.find("#picture-file").send_keys(str(tmp_path / "red.png"))
    page.wait(lambda: page.count("#tray li") == 2)
    page.keys(TAB)
    tab_to(page, "tab-ask")
    tab_to(page, "Move picture 1 later")
    page.keys(SPACE)
    assert page.focused == "Remove picture 2"
    tab_to(page, "question")
    page.keys(ENTER)
    page.wait(lambda: page.texts(".turn .answer") == ["red green what shape is it?"])
    assert page.focused == "question"
    tab_to(page, "tab-ask")
    page.keys(TAB, ENTER)
    assert page.find("#captions-below").is_displayed()
    page.keys(ESCAPE)
    assert not page.find("#captions-below").is_displayed()
    assert page.focused == "Settings"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (768, 1024), (390, 844)])
def test_every_screen_shows_all_of_it(page: Page, tmp_path: Path, width: int, height: int, dark: bool):
    with page.screen(width, height, dark=dark):
        page.open()
        page.wait(lambda: page.count("#transcript li.said") >= 2)
        page.screenshot(f"live-{width}-{'dark' if dark else 'light'}")
        assert page.script(OVERFLOWING) == []
        assert page.script("document.documentElement.scrollWidth") <= width
        assert page.script("document.getElementById('status').getClientRects()[0].height") < 40, "one line"
        page.click("#tab-ask")
        for colour in ("red", "blue"):
            (tmp_path / f"{colour}.png").write_bytes(picture(colour))
            page.find("#picture-file").send_keys(str(tmp_path / f"{colour}.png"))
        page.wait(lambda: page.count("#tray li") == 2)
        bottom = page.script("document.getElementById('ask').getBoundingClientRect().bottom")
        assert bottom <= height, "the question box is in sight"
        page.screenshot(f"ask-{width}-{'dark' if dark else 'light'}")
        page.write("#question", "which is larger")
        page.click("#ask")
        page.wait(lambda: page.count(".turn[aria-busy=false]") == 1)
        page.screenshot(f"answered-{width}-{'dark' if dark else 'light'}")
        assert page.script(OVERFLOWING) == []
        shown = [
            ".hint",
            "textarea",
            ".button",
            ".tabs button",
            ".answer",
            ".question",
            ".account",
            ".brand span",
        ]
        page.wait(
            lambda: min(ratio for _, ratio in page.script(CONTRASTS, shown)) >= 4.5
        )  # once colours rest
        assert page.problems() == []


def test_at_1440_by_900_picture_words_and_their_box_are_in_sight_without_bars(page: Page):
    with page.screen(1440, 900):
        page.open()
        page.wait(lambda: page.rows())
        boxes = {
            name: page.script(f"(({{left, right, top, bottom}}) => [left, right, top, bottom])"
                              f"(document.querySelector('{name}').getBoundingClientRect())")
            for name in ("#screen", "#prompt", "#transcript", "#strip")
        }  # fmt: skip
        assert max(bottom for *_, bottom in boxes.values()) <= 900
        left, right, top, bottom = boxes["#screen"]
        bars = (right - left) - (bottom - top)  # the clip is a square
        assert bars < 0.1 * (right - left)


def test_on_a_phone_the_caption_stands_below_the_picture(page: Page):
    with page.screen(390, 844):
        page.open()
        page.wait(lambda: page.texts("#caption .line"))
        below = "document.querySelector('#caption').getBoundingClientRect().top"
        assert page.script(below) >= page.script(
            "document.querySelector('#video').getBoundingClientRect().bottom"
        )


def test_without_motion_nothing_plays_by_itself(page: Page, tmp_path: Path):
    with page.screen(1440, 900, motion=False):
        page.open()
        page.wait(lambda: page.find("#play").is_enabled())
        assert page.script("document.getElementById('video').paused")
        page.click("#play")
        page.wait(lambda: page.texts("#caption .line span") and page.rows())
        page.click("#tab-file")
        page.find("#file").send_keys(str(write_clip(tmp_path / "own.mp4", ["red"])))
        page.wait(lambda: page.find("#play").is_enabled())
        assert page.script("document.getElementById('video').paused")


def test_space_plays_and_pauses_but_writes_in_a_field(page: Page):
    page.wait(lambda: page.text("#status-text") == "Live")
    page.click("#transcript-title")
    page.keys(SPACE)
    page.wait(lambda: page.script("document.getElementById('video').paused"))
    page.click("#query")
    page.keys("a", SPACE, "b")
    assert page.find("#query").get_attribute("value") == "a b"
    assert page.script("document.getElementById('video').paused")
