"""A WebSocket client streams frames and gets captions; what it does wrong costs it no more than it must."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.support.serve.fakes import FakeEngine
from tests.support.serve.live_client import assert_fatal, live, push, receive, send, start
from tests.support.serve.server import MODEL, binary_frame, data_uri, picture, running, settings_with

FRAME_LIMIT = 100_000


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def url(engine: FakeEngine) -> Iterator[str]:
    limits = {
        "frame_bytes": FRAME_LIMIT,
        "query_characters": 100,
        "frame_pixels": 10_000,
        "resume_seconds": 1.0,
    }
    with running(engine, settings_with(limits=limits)) as address:
        yield address


def test_a_session_captions_every_frame_in_order_and_reports_its_totals(url: str):
    with live(url) as socket:
        started = start(socket, query="I see", model=MODEL)
        assert started["model"] == MODEL
        assert started["limits"]["queued_frames"] >= 1
        jpeg = data_uri(picture("red", kind="JPEG"), "image/jpeg")
        send(socket, {"type": "frame", "timestamp": 0.0, "image": jpeg})
        first = receive(socket)
        assert first["type"] == "caption"
        assert (first["timestamp"], first["text"]) == (0.0, "I see red 1")
        assert first["latency_ms"] >= first["engine_ms"] >= 0
        silent = push(socket, 0.5, "red")
        assert (silent["timestamp"], silent["text"], silent["tokens"]) == (0.5, "", 0)
        assert push(socket, 1.0, "blue")["text"] == "I see blue 3"
        assert silent["text_tokens"] > first["text_tokens"]
        send(socket, {"type": "session.end"})
        ended = receive(socket)
        assert ended["type"] == "session.ended"
        assert (ended["frames"], ended["dropped"], ended["refused"], ended["tokens"]) == (3, 0, 0, 8)
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=5)
        assert socket.close_code == 1000


def test_a_client_that_asks_nothing_gets_the_query_of_the_deployment():
    with running(FakeEngine(), settings_with(live_query="say it")) as address:
        with live(address) as silent:
            start(silent)
            assert push(silent, 0.0, "red")["text"] == "say it red 1"
        with live(address) as asking:
            start(asking, query="I see")
            assert push(asking, 0.0, "red")["text"] == "I see red 1"


def test_frames_sent_before_the_end_are_all_captioned(url: str):
    with live(url) as socket:
        limit = start(socket)["limits"]["queued_frames"]
        for number in range(limit):
            socket.send(binary_frame(number, picture("red")))
        send(socket, {"type": "session.end"})
        events = [receive(socket) for _ in range(limit + 1)]
    assert [event["type"] for event in events] == ["caption"] * limit + ["session.ended"]
    assert [event["timestamp"] for event in events[:-1]] == list(range(limit))


BAD_MESSAGES: dict[str, tuple[dict[str, Any] | str | bytes, str, float | None]] = {
    "a broken image": (binary_frame(0.25, b"no image"), "invalid_image", 0.25),
    "an empty image": (binary_frame(0.25, b""), "invalid_image", 0.25),
    "an image with too many pixels": (binary_frame(0.25, picture(size=101)), "invalid_image", 0.25),
    "a remote image": (
        {"type": "frame", "timestamp": 0.25, "image": "http://127.0.0.1/x.png"},
        "unsupported_image_url",
        0.25,
    ),
    "broken base64": (
        {"type": "frame", "timestamp": 0.25, "image": "data:image/png;base64,@@"},
        "invalid_image",
        0.25,
    ),
    "an oversized frame": (binary_frame(0.25, b"x" * (FRAME_LIMIT + 1)), "frame_too_large", 0.25),
    "an oversized frame in JSON": (
        {"type": "frame", "timestamp": 0.25, "image": data_uri(b"x" * (FRAME_LIMIT + 1))},
        "frame_too_large",
        0.25,
    ),
    "a short binary message": (b"1234", "invalid_message", None),
    "a time that is no number": (binary_frame(float("nan"), picture()), "invalid_value", None),
    "a negative time": (binary_frame(-1.0, picture()), "invalid_value", None),
    "a time that does not increase": (binary_frame(0.0, picture()), "timestamp_not_increasing", 0.0),
    "malformed JSON": ("{", "invalid_json", None),
    "an unknown message": ({"type": "dance"}, "invalid_message", None),
    "no object": ("[]", "invalid_message", None),
    "a frame without a time": ({"type": "frame", "image": "x"}, "invalid_message", None),
    "a second start": ({"type": "session.start"}, "session_already_started", None),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_a_bad_message_gets_an_error_event_and_the_session_goes_on_as_if_it_had_not_come(url: str, case: str):
    message, code, timestamp = BAD_MESSAGES[case]
    with live(url) as socket:
        start(socket)
        assert push(socket, 0.0, "red")["text"] == "red 1"
        socket.send(json.dumps(message) if isinstance(message, dict) else message)
        event = receive(socket)
        assert (event["type"], event["fatal"], event["timestamp"]) == ("error", False, timestamp), event
        assert set(event["error"]) == {"message", "type", "param", "code"}
        assert event["error"]["code"] == code
        assert push(socket, 0.5, "green")["text"] == "green 2"
        send(socket, {"type": "session.end"})
        assert receive(socket)["refused"] == 1


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ({"type": "frame", "timestamp": 0.0, "image": data_uri(picture())}, "session_not_started"),
        ({"type": "session.start", "model": "gpt-4"}, "model_not_found"),
        ({"type": "session.start", "query": "x" * 101}, "invalid_value"),
        ({"type": "session.start", "max_tokens_per_frame": 10**9}, "invalid_value"),
        ({"type": "session.start", "temprature": 1}, "invalid_message"),
        ("{", "invalid_json"),
    ],
)
def test_a_wrong_beginning_ends_the_connection_with_a_reason(
    url: str, first: dict[str, Any] | str, code: str
):
    with live(url) as socket:
        socket.send(first if isinstance(first, str) else json.dumps(first))
        assert_fatal(socket, code, 1008)


def test_an_engine_failure_ends_only_its_own_session(url: str):
    with live(url) as healthy, live(url) as doomed:
        start(healthy)
        start(doomed, query="explode")
        assert push(healthy, 0.0, "red")["text"] == "red 1"
        doomed.send(binary_frame(0.0, picture()))
        event = assert_fatal(doomed, "internal_error", 1011)
        assert "must not reach" not in json.dumps(event)
        assert push(healthy, 0.5, "blue")["text"] == "blue 2"


def test_interleaved_sessions_say_what_each_says_alone(url: str):
    streams = {
        f"viewer {number}": [
            ("red", "red", "blue", "green", "green", "white")[(number + i) % 6] for i in range(12)
        ]
        for number in range(6)
    }

    def run(query: str) -> list[str]:
        with live(url) as socket:
            start(socket, query=query)
            return [push(socket, i / 2, colour)["text"] for i, colour in enumerate(streams[query])]

    alone = {query: run(query) for query in streams}
    with ThreadPoolExecutor(len(streams)) as pool:
        together = dict(zip(streams, pool.map(run, streams), strict=True))
    assert together == alone
    assert alone["viewer 0"][:3] == ["viewer 0 red 1", "", "viewer 0 blue 3"]


def test_a_session_is_freed_when_its_client_ends_it_leaves_or_breaks_off(url: str, engine: FakeEngine):
    with live(url) as socket:
        start(socket)
        send(socket, {"type": "session.end"})
        receive(socket)
    with live(url) as socket:
        start(socket)
        push(socket, 0.0, "red")
    with live(url) as socket:
        start(socket)
        socket.socket.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if engine.open_sessions == 0 and httpx.get(f"{url}/healthz").json()["live_sessions"] == 0:
            return
        time.sleep(0.02)
    pytest.fail(f"{engine.open_sessions} sessions still open")


def test_when_frames_come_too_fast_the_oldest_waiting_ones_are_dropped_and_named():
    with (
        running(FakeEngine(delay_s=0.15), settings_with(limits={"queued_frames": 2})) as url,
        live(url) as socket,
    ):
        start(socket)
        for number in range(10):
            socket.send(binary_frame(number, picture("red")))
        send(socket, {"type": "session.end"})
        events = []
        while not events or events[-1]["type"] != "session.ended":
            events.append(receive(socket))
    captioned = [event["timestamp"] for event in events if event["type"] == "caption"]
    dropped = [event["timestamp"] for event in events if event["type"] == "dropped"]
    assert sorted(captioned + dropped) == list(range(10)), "every frame is accounted for"
    assert captioned == sorted(captioned)
    assert captioned[-2:] == [8, 9], "the newest frames are the ones that are kept"
    assert events[-1]["dropped"] == len(dropped) >= 6


def test_a_silent_client_is_cut_off_with_a_reason():
    with running(FakeEngine(), settings_with(limits={"idle_seconds": 0.2})) as url:
        with live(url) as socket:
            assert_fatal(socket, "session_idle", 1008)
        with live(url) as socket:
            start(socket)
            assert_fatal(socket, "session_idle", 1008)


def test_a_client_that_waits_for_slow_captions_is_not_called_silent():
    with (
        running(FakeEngine(delay_s=0.6), settings_with(limits={"idle_seconds": 0.2})) as url,
        live(url) as socket,
    ):
        start(socket)
        assert push(socket, 0.0, "red")["text"] == "red 1"


def test_sessions_beyond_the_bound_are_refused_until_one_closes():
    with running(FakeEngine(), settings_with(limits={"sessions": 1})) as url:
        with live(url) as first:
            start(first)
            with live(url) as second:
                event = assert_fatal(second, "too_many_sessions", 1013)
                assert event["error"]["type"] == "rate_limit_error"
        deadline = time.monotonic() + 5
        while httpx.get(f"{url}/healthz").json()["live_sessions"] and time.monotonic() < deadline:
            time.sleep(0.02)
        with live(url) as third:
            start(third)


def test_a_session_has_a_last_frame():
    with running(FakeEngine(), settings_with(limits={"session_frames": 2})) as url, live(url) as socket:
        start(socket)
        push(socket, 0.0, "red")
        push(socket, 0.5, "blue")
        socket.send(binary_frame(1.0, picture()))
        assert_fatal(socket, "frame_limit", 1008)


def test_a_stream_that_fills_the_models_context_is_told_to_start_anew(url: str):
    with live(url) as socket:
        start(socket, query="short memory")
        push(socket, 0.0, "red")
        push(socket, 0.5, "blue")
        socket.send(binary_frame(1.0, picture()))
        event = assert_fatal(socket, "session_full", 1008)
        assert "open a new session" in event["error"]["message"]


def test_pages_of_other_origins_may_not_listen_in(url: str):
    with live(url, Origin="https://evil.example") as socket:
        assert_fatal(socket, "origin_not_allowed", 1008)
    with live(url, Origin=url) as socket:
        start(socket)


def test_the_per_frame_token_limit_is_the_sessions_own(url: str):
    with live(url) as socket:
        start(socket, query="one two three", max_tokens_per_frame=2)
        caption = push(socket, 0.0, "red")
        assert (caption["text"], caption["truncated"]) == ("one two", True)


def ask(socket: ClientConnection, query: str) -> None:
    send(socket, {"type": "session.prompt", "query": query})


def test_a_question_in_the_middle_of_a_stream_is_answered_about_its_latest_frame(url: str):
    with live(url) as socket:
        start(socket)
        push(socket, 0.0, "red")
        push(socket, 0.5, "blue")
        ask(socket, "what colour")
        answer = receive(socket)
        assert (answer["type"], answer["query"], answer["text"]) == (
            "answer",
            "what colour",
            "what colour blue",
        )
        assert answer["timestamp"] == 0.5
        assert push(socket, 1.0, "green")["text"] == "green 3"
        send(socket, {"type": "session.end"})
        assert receive(socket)["frames"] == 3, "an answer is no frame"


def test_questions_before_the_end_are_all_answered_in_order(url: str):
    with live(url) as socket:
        start(socket)
        for number in range(3):
            ask(socket, f"question {number}")
        send(socket, {"type": "session.end"})
        answers = [receive(socket) for _ in range(3)]
        assert [answer["query"] for answer in answers] == ["question 0", "question 1", "question 2"]
        assert receive(socket)["type"] == "session.ended"


@pytest.mark.parametrize(
    ("query", "code"),
    [("too long", "invalid_request"), ("x" * 101, "invalid_value"), ("", "invalid_message")],
)
def test_a_question_that_is_refused_costs_the_session_nothing(url: str, query: str, code: str):
    with live(url) as socket:
        start(socket)
        ask(socket, query)
        event = receive(socket)
        assert (event["type"], event["error"]["code"], event["fatal"]) == ("error", code, False)
        assert push(socket, 0.0, "red")["text"] == "red 1"


def test_no_more_questions_wait_than_a_session_may_have():
    engine = FakeEngine()
    engine.answers_questions = False
    limits = {"queued_prompts": 2}
    with running(engine, settings_with(limits=limits)) as url, live(url) as socket:
        assert start(socket)["limits"]["queued_prompts"] == 2
        for number in range(3):
            ask(socket, f"question {number}")
        refused = receive(socket)
        assert (refused["error"]["code"], refused["fatal"]) == ("too_many_prompts", False)
        engine.answers_questions = True
        engine.wake()
        assert [receive(socket)["query"] for _ in range(2)] == ["question 0", "question 1"]
        ask(socket, "question 3")
        assert receive(socket)["query"] == "question 3"


def test_half_a_character_in_a_query_is_refused(url: str):
    with live(url) as socket:
        socket.send('{"type": "session.start", "query": "x \\ud83d"}')
        event = assert_fatal(socket, "invalid_message", 1008)
        assert event["error"]["param"] == "query"


def test_connections_that_start_nothing_take_no_session_and_are_closed():
    limits = {"sessions": 1, "start_seconds": 0.5}
    with (
        running(FakeEngine(), settings_with(limits=limits)) as url,
        live(url) as idle,
        live(url) as other,
        live(url) as third,
    ):
        start(third)
        assert push(third, 0.0, "red")["text"] == "red 1"
        assert_fatal(idle, "session_idle", 1008)
        assert_fatal(other, "session_idle", 1008)
        assert push(third, 0.5, "blue")["text"] == "blue 2"


def test_a_caption_says_how_late_it_is(url: str):
    with live(url) as socket:
        start(socket)
        assert push(socket, 0.0, "red")["late_ms"] == 0
