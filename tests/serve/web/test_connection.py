"""The page when its connection is lost, its endpoint is away, or a key is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.api_keys import as_text, make_key
from tests.support.serve.browser import Page
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.proxy import Proxy, cuttable
from tests.support.serve.server import picture, running, settings_with, write_clip


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    write_clip(folder / "a.mp4", ["red", "green", "blue", "yellow", "white", "black"])
    return folder


@pytest.fixture
def proxied(browser: Any, long_clip: Path) -> Iterator[tuple[Page, Proxy]]:
    with running(FakeEngine(), settings_with(demo_clips=str(long_clip))) as url, cuttable(url) as proxy:
        page = Page(browser, proxy.url)
        page.open()
        page.wait(lambda: page.rows())
        yield page, proxy


def test_a_lost_connection_is_taken_up_again_and_no_frame_is_lost(proxied: tuple[Page, Proxy]):
    page, proxy = proxied
    for _ in range(2):
        seen = len(page.rows())
        proxy.cut()
        page.wait(lambda: page.text("#status-text") == "Reconnecting")
        page.wait(lambda: page.text("#status-text") == "Live")
        page.wait(lambda seen=seen: len(page.rows()) > seen)
    page.wait(lambda: page.text("#status-text") == "Ready", 15)
    colours = ["red 1", "green 3", "blue 5", "yellow 7", "white 9", "black 11"]
    assert [row.split(" ", 1)[1] for row in page.rows()] == colours, "one session saw every frame"
    assert page.text("#frames") == "12"
    assert page.count(".track .lost") == 0
    assert page.texts("#transcript .problem") == []
    assert page.texts("#transcript .note") == ["12 frames, 12 tokens said."]


RESUMED = """
const done = arguments[0];
const [sent, heard, sockets] = [[], [], []];
window.WebSocket = class {
  static OPEN = 1;
  readyState = 1;
  constructor() { sockets.push(this); setTimeout(() => this.onopen()); }
  send(data) {
    sent.push(typeof data === 'string' ? JSON.parse(data) : new DataView(data.buffer).getFloat64(0, true));
  }
  close() {}
  tell(...events) { for (const event of events) this.onmessage({ data: JSON.stringify(event) }); }
};
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
import('/web/live.js').then(async ({ LiveSession }) => {
  const kinds = ['started', 'caption', 'answer', 'dropped', 'error', 'moved', 'ended', 'lost', 'closed'];
  const on = Object.fromEntries(kinds.map((kind) => [kind, () => heard.push(kind)]));
  const session = new LiveSession('q', on);
  await pause(20);
  sockets[0].tell({ type: 'session.started', session_id: 'live-1', event: 1 });
  for (const time of [0, 0.5, 1]) session.push(time, new ArrayBuffer(1));
  sockets[0].tell({ type: 'caption', timestamp: 0, event: 2 });
  sockets[0].tell({ type: 'error', fatal: true, error: { code: 'session_moves' } });
  sockets[0].onclose();
  session.push(1.5, new ArrayBuffer(1));
  await pause(500);
  sockets[1].tell({ type: 'session.resumed', session_id: 'live-1', received: 2, event: 2 });
  sockets[1].tell({ type: 'session.moved', exact: true, event: 3 });
  session.end();
  sockets[1].tell({ type: 'session.ended', event: 5 });
  sockets[1].onclose();
  done([sent, heard]);
});
"""


def test_a_session_that_moves_is_resumed_with_the_frames_that_had_not_arrived(page: Page):
    with page.screen(1440, 900, motion=False):  # nothing plays by itself
        page.open()
        page.wait(lambda: page.find("#play").is_enabled())
        sent, heard = page.driver.execute_async_script(RESUMED)
    assert sent == [
        {"type": "session.start", "query": "q"},
        *[0, 0.5, 1],
        {"type": "session.resume", "session_id": "live-1", "after": 2},
        *[1, 1.5],  # of three frames two had come; the fourth waited
        {"type": "session.end"},
    ]
    assert heard == ["started", "caption", "lost", "started", "moved", "ended", "closed"]


def test_an_endpoint_out_of_reach_is_named_once_and_captions_go_on_when_it_is_back(
    browser: Any, long_clip: Path
):
    limits = {"resume_seconds": 0.2}
    settings = settings_with(demo_clips=str(long_clip), limits=limits)
    with running(FakeEngine(), settings) as url, cuttable(url) as proxy:
        page = Page(browser, proxy.url)
        page.open()
        page.wait(lambda: page.rows())
        proxy.reachable = False
        proxy.cut()
        page.wait(lambda: page.text("#status-text") == "Reconnecting")
        page.wait(lambda: page.script("document.getElementById('video').currentTime") > 3)
        proxy.reachable = True
        page.wait(lambda: "no longer has the session" in " ".join(page.texts("#transcript .note")))
        page.wait(lambda: page.script("document.getElementById('video').ended"), 15)
        page.click("#clips button")
        page.wait(lambda: page.rows())


def test_a_page_that_was_left_gives_its_place_free_at_once(browser: Any, long_clip: Path):
    settings = settings_with(demo_clips=str(long_clip), limits={"sessions": 1})
    with running(FakeEngine(), settings) as url:
        page = Page(browser, url)
        page.open()
        for _ in range(3):
            page.wait(lambda: page.rows() and page.text("#status-text") == "Live")
            page.click("#clips button")
        page.wait(lambda: page.rows())
        assert page.texts("#transcript .problem") == []


def test_a_full_endpoint_is_named_once(browser: Any, long_clip: Path):
    settings = settings_with(demo_clips=str(long_clip), limits={"sessions": 1})
    with running(FakeEngine(), settings) as url:
        page = Page(browser, url)
        page.open()
        page.wait(lambda: page.text("#status-text") == "Live")
        page.script("window.open('/')")
        first, second = page.driver.window_handles
        page.driver.switch_to.window(second)
        try:
            [problem] = page.wait(lambda: page.texts("#transcript .problem"))
            assert "Try again later" in problem
            assert page.text("#status-text") == "Stopped"
        finally:
            page.driver.close()
            page.driver.switch_to.window(first)


def test_what_is_said_of_every_frame_is_said_once(browser: Any, long_clip: Path):
    settings = settings_with(demo_clips=str(long_clip), limits={"frame_bytes": 100})
    with running(FakeEngine(), settings) as url:
        page = Page(browser, url)
        page.open()
        page.wait(lambda: page.count(".track .mark.lost") >= 4)
        [problem] = page.texts("#transcript .problem")
        assert "larger than 100 bytes" in problem


def test_a_pause_that_ends_the_session_is_named_and_what_was_said_stays(browser: Any, long_clip: Path):
    settings = settings_with(demo_clips=str(long_clip), limits={"idle_seconds": 0.7})
    with running(FakeEngine(), settings) as url:
        page = Page(browser, url)
        page.open()
        page.wait(lambda: page.rows())
        page.click("#play")
        [note] = page.wait(lambda: page.texts("#transcript .note"))
        assert note.startswith("The session ended in the pause")
        page.wait(lambda: page.text("#status-text") == "Ready")
        page.click("#play")
        page.wait(lambda: "yellow" in " ".join(page.rows()))
        assert page.rows()[0].startswith("0:00.0 red 1")


def test_pictures_are_made_as_small_as_the_endpoint_asks(browser: Any, tmp_path: Path):
    limits = {"image_pixels": 40_000, "request_pixels": 160_000, "images_per_request": 8}
    (tmp_path / "blue.png").write_bytes(picture("blue", size=500))
    with running(FakeEngine(), settings_with(limits=limits)) as url:
        page = Page(browser, url)
        page.open()
        page.wait(lambda: page.text("#model") != "…")
        page.click("#tab-ask")
        for _ in range(8):
            page.find("#picture-file").send_keys(str(tmp_path / "blue.png"))
        page.wait(lambda: page.count("#tray li") == 8)
        page.write("#question", "eight")
        page.click("#ask")
        page.wait(lambda: page.texts(".turn .answer") == [" ".join(["blue"] * 8) + " eight"])


def test_a_key_that_the_endpoint_asks_for_is_given_in_the_settings(
    browser: Any, long_clip: Path, tmp_path: Path
):
    secret, alice = make_key("alice")
    (tmp_path / "keys").write_text(as_text([alice]))
    (tmp_path / "red.png").write_bytes(picture("red"))
    access = {"keys": str(tmp_path / "keys")}
    with running(FakeEngine(), settings_with(demo_clips=str(long_clip), access=access)) as url:
        page = Page(browser, url)
        page.open()
        page.wait(lambda: page.text("#status-text") == "Needs a key")
        assert page.focused == "api-key"
        page.keys(secret, "\ue007")
        page.wait(lambda: page.rows())
        assert page.text("#status-text") == "Live"
        page.click("#tab-ask")
        page.find("#picture-file").send_keys(str(tmp_path / "red.png"))
        page.wait(lambda: page.count("#tray li") == 1)
        page.write("#question", "what is it")
        page.click("#ask")
        page.wait(lambda: page.texts(".turn .answer") == ["red what is it"])
        page.open()
        page.wait(lambda: page.rows())  # the key holds as long as the tab
        page.script("sessionStorage.clear()")
