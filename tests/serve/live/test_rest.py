"""Live sessions over plain HTTP: opened, fed, read as server-sent events and ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serve.live import sse
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.live_client import eventually, live, lose, open_sessions, resume, start
from tests.support.serve.server import data_uri, picture, running, settings_with

SESSIONS = "/v1/streaming/sessions"
Event = dict[str, Any]


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def http(engine: FakeEngine) -> Iterator[httpx.Client]:
    with (
        running(engine, settings_with(limits={"frame_bytes": 100_000})) as url,
        httpx.Client(base_url=url, timeout=10) as client,
    ):
        yield client


def opened(http: httpx.Client, **fields: Any) -> str:
    answer = http.post(SESSIONS, json=fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def push(http: httpx.Client, session_id: str, timestamp: float, colour: str) -> httpx.Response:
    return http.post(
        f"{SESSIONS}/{session_id}/frame",
        params={"timestamp": timestamp},
        content=picture(colour, kind="JPEG"),
        headers={"content-type": "image/jpeg"},
    )


def events(http: httpx.Client, session_id: str, count: int, **headers: str) -> list[Event]:
    """The first events of a stream; every one has its number as id."""
    found: list[Event] = []
    with http.stream("GET", f"{SESSIONS}/{session_id}/events", headers=headers) as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        number = None
        for line in stream.iter_lines():
            if line.startswith("id: "):
                number = int(line[4:])
            elif line.startswith("data: "):
                found.append(json.loads(line[6:]))
                assert found[-1]["event"] == number
                if len(found) == count:
                    break
    return found


def test_a_session_is_opened_fed_read_and_ended(http: httpx.Client, engine: FakeEngine):
    created = http.post(SESSIONS, json={"query": "I see"})
    assert created.status_code == 201
    session = created.json()
    assert created.headers["x-session-id"] == session["id"]
    assert created.headers["location"] == session["urls"]["session"] == f"{SESSIONS}/{session['id']}"
    assert (session["object"], session["state"], session["session_header"]) == (
        "streaming.session",
        "open",
        "x-session-id",
    )
    assert session["credits"] == session["limits"]["queued_frames"]
    for number, colour in enumerate(("red", "red", "blue")):
        taken = push(http, session["id"], number / 2, colour)
        assert taken.status_code == 202
        assert taken.json()["timestamp"] == number / 2
        assert taken.json()["credits"] >= 0
    said = events(http, session["id"], 4)
    assert [event["type"] for event in said] == ["session.started", *["caption"] * 3]
    assert [event["text"] for event in said[1:]] == ["I see red 1", "", "I see blue 3"]
    ended = http.delete(f"{SESSIONS}/{session['id']}").json()
    assert (ended["state"], ended["usage"]["frames"], ended["usage"]["captions"]) == ("ended", 3, 2)
    eventually(lambda: engine.open_sessions == 0)


def test_a_frame_is_an_image_a_form_or_json(http: httpx.Client):
    session_id = opened(http)
    frame = f"{SESSIONS}/{session_id}/frame"
    assert push(http, session_id, 0.0, "red").status_code == 202
    form = {"timestamp": "0.5"}, {"image": ("frame.png", picture("green"), "image/png")}
    assert http.post(frame, data=form[0], files=form[1]).status_code == 202
    body = {"timestamp": 1.0, "image": data_uri(picture("blue"))}
    assert http.post(frame, json=body).status_code == 202
    assert http.post(frame, json={"type": "frame", **body, "timestamp": 1.5}).status_code == 202
    said = [event["text"] for event in events(http, session_id, 5)[1:]]
    assert said == ["red 1", "green 2", "blue 3", ""]


def test_a_further_question_is_answered_in_the_stream(http: httpx.Client):
    session_id = opened(http)
    push(http, session_id, 0.0, "red")
    assert [event["type"] for event in events(http, session_id, 2)] == ["session.started", "caption"]
    asked = http.post(f"{SESSIONS}/{session_id}/prompt", json={"query": "what colour"})
    assert asked.status_code == 202
    answer = events(http, session_id, 3)[2]
    assert (answer["type"], answer["text"]) == ("answer", "what colour red")


@pytest.mark.parametrize("header", [True, False])
def test_reading_goes_on_after_the_event_that_was_last_read(http: httpx.Client, header: bool):
    session_id = opened(http)
    for number, colour in enumerate(("red", "blue", "green")):
        push(http, session_id, number, colour)
    assert len(events(http, session_id, 4)) == 4
    if header:
        again = events(http, session_id, 3, **{"last-event-id": "2"})
    else:
        with http.stream("GET", f"{SESSIONS}/{session_id}/events?after=2") as stream:
            lines = stream.iter_lines()
            again = [json.loads(next(line for line in lines if line[:5] == "data:")[6:]) for _ in range(3)]
    assert [event["event"] for event in again] == [2, 3, 4]
    assert (again[0]["type"], again[1]["text"], again[2]["text"]) == (
        "session.resumed",
        "blue 2",
        "green 3",
    )


def test_a_session_that_ends_ends_its_event_stream_and_browsers_do_not_come_back(http: httpx.Client):
    session_id = opened(http)
    push(http, session_id, 0.0, "red")
    assert http.delete(f"{SESSIONS}/{session_id}", params={"drain": True}).json()["usage"]["frames"] == 1
    said = events(http, session_id, 99)
    assert [event["type"] for event in said] == ["session.started", "caption", "session.ended"]
    again = http.get(f"{SESSIONS}/{session_id}/events", headers={"last-event-id": "3"})
    assert again.status_code == 204


def test_one_session_may_be_read_over_a_websocket_and_fed_by_calls(http: httpx.Client):
    session_id = opened(http)
    with live(str(http.base_url)) as socket:
        assert resume(socket, session_id, after=1)["type"] == "session.resumed"
        push(http, session_id, 0.0, "red")
        assert json.loads(socket.recv(timeout=5))["text"] == "red 1"


REFUSED: dict[str, tuple[dict[str, Any], int, str, str | None]] = {
    "no time": (
        {"content": picture(), "headers": {"content-type": "image/png"}},
        400,
        "missing_required_parameter",
        "timestamp",
    ),
    "a time that is no number": (
        {"content": picture(), "headers": {"content-type": "image/png"}, "params": {"timestamp": "soon"}},
        400,
        "invalid_value",
        "timestamp",
    ),
    "a time below zero": (
        {"content": picture(), "headers": {"content-type": "image/png"}, "params": {"timestamp": "-1"}},
        400,
        "invalid_value",
        "timestamp",
    ),
    "a text": (
        {"content": b"x", "headers": {"content-type": "text/plain"}},
        415,
        "unsupported_media_type",
        "content-type",
    ),
    "too many bytes": (
        {"content": b"x" * 100_001, "headers": {"content-type": "image/png"}, "params": {"timestamp": 1}},
        413,
        "frame_too_large",
        "image",
    ),
    "a form without an image": (
        {"data": {"timestamp": "1"}, "files": {"other": b"x"}},
        400,
        "missing_required_parameter",
        "image",
    ),
    "broken JSON": (
        {"content": b"{", "headers": {"content-type": "application/json"}},
        400,
        "invalid_json",
        None,
    ),
    "JSON without an image": ({"json": {"timestamp": 1}}, 400, "invalid_message", "image"),
    "a remote image": (
        {"json": {"timestamp": 1, "image": "http://127.0.0.1/x.png"}},
        400,
        "unsupported_image_url",
        "image",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_frame_that_is_refused_leaves_the_session_as_it_was(http: httpx.Client, case: str):
    call, status, code, param = REFUSED[case]
    session_id = opened(http)
    push(http, session_id, 0.0, "red")
    refused = http.post(f"{SESSIONS}/{session_id}/frame", **call)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (status, code, param), error
    assert push(http, session_id, 2.0, "blue").status_code == 202
    assert http.get(f"{SESSIONS}/{session_id}").json()["usage"]["refused"] == 1
    http.delete(f"{SESSIONS}/{session_id}")


def test_what_is_refused_of_an_open_session(http: httpx.Client):
    session_id = opened(http)
    push(http, session_id, 1.0, "red")
    assert push(http, session_id, 1.0, "red").json()["error"]["code"] == "timestamp_not_increasing"
    empty = http.post(f"{SESSIONS}/{session_id}/prompt", json={"query": ""})
    assert (empty.status_code, empty.json()["error"]["param"]) == (400, "query")
    number = http.get(f"{SESSIONS}/{session_id}/events", headers={"last-event-id": "x"})
    assert (number.status_code, number.json()["error"]["param"]) == (400, "last-event-id")
    http.delete(f"{SESSIONS}/{session_id}")


@pytest.mark.parametrize("call", ["frame", "prompt", "events", ""])
def test_a_session_that_never_was_is_not_found(http: httpx.Client, call: str):
    path = f"{SESSIONS}/live-made-up/{call}".rstrip("/")
    body = {"query": "x"} if call == "prompt" else {"timestamp": 0, "image": data_uri(picture())}
    answer = http.post(path, json=body) if call in ("frame", "prompt") else http.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")


def test_an_ended_session_says_why_it_takes_nothing_more(http: httpx.Client):
    session_id = opened(http, query="explode")
    push(http, session_id, 0.0, "red")
    eventually(lambda: http.get(f"{SESSIONS}/{session_id}").json()["state"] == "ended")
    refused = push(http, session_id, 1.0, "red")
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "internal_error")
    assert "must not reach" not in refused.text


def test_sessions_of_both_kinds_share_the_places():
    with (
        running(FakeEngine(), settings_with(limits={"sessions": 1})) as url,
        httpx.Client(base_url=url) as http,
    ):
        session_id = opened(http)
        full = http.post(SESSIONS)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "too_many_sessions")
        assert int(full.headers["retry-after"]) >= 1
        http.delete(f"{SESSIONS}/{session_id}")
        with live(url) as socket:
            start(socket)
            lose(socket)
        eventually(lambda: http.post(SESSIONS).status_code == 201)
        assert open_sessions(url) == 1


def test_a_session_that_is_neither_read_nor_fed_ends():
    with (
        running(FakeEngine(), settings_with(limits={"resume_seconds": 2.0})) as url,
        httpx.Client(base_url=url) as http,
    ):
        session_id = opened(http)
        for number in range(4):
            eventually(lambda number=number: push(http, session_id, number, "red").status_code == 202)
        eventually(lambda: open_sessions(url) == 0)


def test_an_event_stream_is_kept_alive_and_its_end_gives_the_session_up():
    with (
        running(FakeEngine(), settings_with(limits={"resume_seconds": 1.5})) as url,
        pytest.MonkeyPatch.context() as patched,
        httpx.Client(base_url=url) as http,
    ):
        patched.setattr(sse, "KEEP_ALIVE_S", 0.6)
        session_id = opened(http)
        with http.stream("GET", f"{SESSIONS}/{session_id}/events") as stream:
            lines = [line for line, _ in zip(stream.iter_lines(), range(9), strict=False)]
            assert lines[:3] == ["id: 1", lines[1], ""]
            assert lines[3::2] == [": keep-alive"] * 3, "and it is open for longer than without a reader"
            assert open_sessions(url) == 1
        eventually(lambda: open_sessions(url) == 0)


def test_another_reader_takes_the_events_over_and_the_one_before_is_told(http: httpx.Client):
    session_id = opened(http)
    with http.stream("GET", f"{SESSIONS}/{session_id}/events") as first:
        lines = (line for line in first.iter_lines() if line.startswith("data: "))
        assert "session.started" in next(lines)
        assert len(events(http, session_id, 1)) == 1
        assert json.loads(next(lines)[6:])["error"]["code"] == "session_taken_over"
        assert not list(lines)
    http.delete(f"{SESSIONS}/{session_id}")
