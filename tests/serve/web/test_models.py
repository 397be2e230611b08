"""The page of an endpoint that serves several models, in a real headless Chromium."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from serve.loading import load_pool
from tests.support.serve.browser import Page
from tests.support.serve.server import running, settings_with


def test_a_visitor_chooses_the_model_that_captions_and_answers(browser: Any, samples: Path, tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    settings = settings_with(
        model_folder=tmp_path / "one",
        model_name="one",
        models={"two": {"folder": str(tmp_path / "two")}},
        engine="tests.support.serve.fakes:NamedFake",
        demo_clips=str(samples),
    )
    with ExitStack() as copies, running(load_pool(settings, copies), settings) as address:
        page = Page(browser, address)
        browser.get_log("browser")
        page.open()
        page.wait(lambda: page.find("#models").is_displayed())
        assert page.texts("#models option") == ["one", "two"]
        page.wait(lambda: any("one@" in row for row in page.rows()))
        page.screenshot("models-1440")
        page.find("#models").send_keys("two")
        page.wait(lambda: any("two@" in row for row in page.rows()))
        page.click("#tab-ask")
        page.write("#question", "who are you")
        page.click("#ask")
        page.wait(lambda: page.count(".turn[aria-busy=false]") == 1)
        assert page.texts(".turn .answer")[0].startswith("two@")
        with page.screen(390, 844):
            page.screenshot("models-390")
            assert page.script("document.documentElement.scrollWidth") <= 390
        assert page.problems() == []


def test_the_page_of_one_model_offers_no_choice(page: Page):
    page.wait(lambda: page.text("#model") not in ("", "…"))
    assert not page.find("#models").is_displayed()
