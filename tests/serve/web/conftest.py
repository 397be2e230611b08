"""One browser and one page for all tests of the live page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.serve.browser import Page, chromium
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import picture, running, settings_with, write_clip

COLOURS = ["red", "green", "blue", "yellow"]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_clip(folder / "clip-1.mp4", COLOURS)
    write_clip(folder / "clip-2.mp4", ["white", "black"])
    (folder / "clips.json").write_text(
        json.dumps({"clip-2.mp4": {"title": "White, then black", "query": "I watch"}})
    )
    (folder / "picture-1.png").write_bytes(picture("green"))
    (folder / "pictures.json").write_text(json.dumps({"picture-1.png": {"question": "what shape is it?"}}))
    return folder


@pytest.fixture(scope="session")
def page_url(samples: Path) -> Iterator[str]:
    with running(FakeEngine(), settings_with(demo_clips=str(samples))) as address:
        yield address


@pytest.fixture
def page(browser: Any, page_url: str) -> Page:
    page = Page(browser, page_url)
    browser.get_log("browser")
    page.open()
    return page
