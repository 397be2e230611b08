"""A session outlives its connection: it is resumed by its id, and says what was missed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.serve.fakes import FakeEngine
from tests.support.serve.live_client import (
    assert_fatal,
    eventually,
    live,
    lose,
    open_sessions,
    push,
    receive,
    resume,
    send,
    start,
)
from tests.support.serve.server import binary_frame, picture, running, settings_with


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(FakeEngine(), settings_with()) as address:
        yield address


def test_events_are_numbered_from_one(url: str):
    with live(url) as socket:
        assert start(socket)["event"] == 1
        assert [push(socket, number, "red")["event"] for number in range(3)] == [2, 3, 4]


def test_a_session_whose_connection_is_lost_goes_on_with_the_events_that_were_missed():
    with running(FakeEngine(delay_s=0.05), settings_with()) as url:
        with live(url) as socket:
            session_id = start(socket, query="I see")["session_id"]
            push(socket, 0.0, "red")
            for number in (1, 2):
                socket.send(binary_frame(number, picture("blue" if number == 1 else "green")))
            lose(socket)
        with live(url) as socket:
            resumed = resume(socket, session_id, after=2)
            assert (resumed["type"], resumed["event"], resumed["lost"]) == ("session.resumed", 2, 0)
            assert resumed["received"] == 3, "all frames have come"
            missed = [receive(socket) for _ in range(2)]
            assert [(event["event"], event["text"]) for event in missed] == [
                (3, "I see blue 2"),
                (4, "I see green 3"),
            ]
            assert push(socket, 3.0, "white")["text"] == "I see white 4"
            send(socket, {"type": "session.end"})
            assert receive(socket)["frames"] == 4


def test_a_resumed_session_may_ask_for_everything_again(url: str):
    with live(url) as socket:
        session_id = start(socket)["session_id"]
        push(socket, 0.0, "red")
        lose(socket)
    with live(url) as socket:
        resume(socket, session_id)
        assert [receive(socket)["type"] for _ in range(2)] == ["session.started", "caption"]


def test_events_that_are_no_longer_kept_are_counted_as_lost():
    with running(FakeEngine(), settings_with(limits={"kept_events": 3})) as url:
        with live(url) as socket:
            session_id = start(socket)["session_id"]
            for number in range(5):
                push(socket, number, "red")
            lose(socket)
        with live(url) as socket:
            assert resume(socket, session_id, after=1)["lost"] == 2
            assert [receive(socket)["event"] for _ in range(3)] == [4, 5, 6]


def test_another_connection_takes_a_session_over_and_the_one_before_is_told(url: str):
    with live(url) as first, live(url) as second:
        session_id = start(first)["session_id"]
        push(first, 0.0, "red")
        assert resume(second, session_id, after=2)["type"] == "session.resumed"
        assert_fatal(first, "session_taken_over", 1008)
        assert push(second, 1.0, "blue")["text"] == "blue 2"


def test_nothing_is_resumed_that_never_was_or_has_ended(url: str):
    with live(url) as socket:
        send(socket, {"type": "session.resume", "session_id": "live-made-up"})
        assert_fatal(socket, "session_not_found", 1008)
    with live(url) as socket:
        session_id = start(socket)["session_id"]
    eventually(lambda: open_sessions(url) == 0)
    with live(url) as socket:
        resume(socket, session_id, after=1)
        assert receive(socket)["type"] == "session.ended", "it is found for a while, and has ended"


def test_a_number_that_no_event_has_yet_is_refused(url: str):
    with live(url) as socket:
        session_id = start(socket)["session_id"]
        lose(socket)
    with live(url) as socket:
        send(socket, {"type": "session.resume", "session_id": session_id, "after": 9})
        assert assert_fatal(socket, "invalid_value", 1008)["error"]["param"] == "after"


def test_a_session_that_nobody_resumes_ends():
    engine = FakeEngine()
    with running(engine, settings_with(limits={"resume_seconds": 0.3})) as url:
        with live(url) as socket:
            start(socket)
            lose(socket)
        eventually(lambda: engine.open_sessions == 0)
        assert open_sessions(url) == 0


@pytest.mark.parametrize("code", [1000, 1001])
def test_a_client_that_closes_and_comes_back_at_once_finds_a_place(code: int):
    engine = FakeEngine()
    with running(engine, settings_with(limits={"sessions": 1})) as url:
        for _ in range(5):
            with live(url) as socket:
                start(socket)
                push(socket, 0.0, "red")
                socket.close(code)
        assert engine.open_sessions <= 1


def test_of_sessions_without_a_connection_the_one_left_first_yields_its_place():
    engine = FakeEngine()
    with running(engine, settings_with(limits={"sessions": 2})) as url:
        ids = []
        for _ in range(2):
            with live(url) as socket:
                ids.append(start(socket)["session_id"])
                lose(socket)
        with live(url) as new, live(url) as older, live(url) as newer:
            start(new)
            assert resume(newer, ids[1])["type"] == "session.resumed"
            resume(older, ids[0])
            events = [receive(older)["type"] for _ in range(2)]
            assert events == ["session.started", "session.ended"]
            assert engine.open_sessions == 2


def test_a_session_is_resumed_even_where_all_places_are_taken():
    with running(FakeEngine(), settings_with(limits={"sessions": 1})) as url, live(url) as stuck:
        session_id = start(stuck)["session_id"]
        with live(url) as again:
            assert resume(again, session_id, after=1)["type"] == "session.resumed"
            assert push(again, 0.0, "red")["text"] == "red 1"


def test_credits_say_how_many_frames_may_be_sent_without_one_being_dropped():
    with (
        running(FakeEngine(delay_s=0.05), settings_with(limits={"queued_frames": 3})) as url,
        live(url) as socket,
    ):
        credits, sent = start(socket)["credits"], 0
        assert credits == 3
        for _ in range(4):
            for _ in range(credits):
                socket.send(binary_frame(sent, picture("red")))
                sent += 1
            events = [receive(socket) for _ in range(credits)]
            assert {event["type"] for event in events} == {"caption"}
            credits = events[-1]["credits"]
            assert credits == 3, "nothing waits any more"
        for number in range(8):
            socket.send(binary_frame(sent + number, picture("red")))
        first = receive(socket)
        while first["type"] != "dropped":
            first = receive(socket)
        assert first["credits"] == 0, "the queue is full"


def test_usage_is_told_when_asked_for_and_at_the_end(url: str):
    with live(url) as socket:
        start(socket)
        push(socket, 0.0, "red")
        push(socket, 1.0, "red")
        push(socket, 0.5, "red")
        send(socket, {"type": "session.prompt", "query": "what colour"})
        receive(socket)
        send(socket, {"type": "session.usage"})
        usage = receive(socket)
        assert usage["type"] == "session.usage"
        counts = ("received", "frames", "captions", "answers", "refused", "dropped", "tokens")
        assert [usage[name] for name in counts] == [2, 2, 1, 1, 1, 0, 2 + 3]
        assert usage["text_tokens"] > 0
        assert usage["seconds"] >= 0
        send(socket, {"type": "session.end"})
        ended = receive(socket)
        assert {name: ended[name] for name in counts} == {name: usage[name] for name in counts}


def test_asking_for_usage_keeps_a_quiet_session_open():
    with running(FakeEngine(), settings_with(limits={"idle_seconds": 1.5})) as url, live(url) as socket:
        start(socket)
        for _ in range(6):
            with pytest.raises(TimeoutError):
                socket.recv(timeout=0.5)
            send(socket, {"type": "session.usage"})
            assert receive(socket)["type"] == "session.usage"
        assert_fatal(socket, "session_idle", 1008)


def test_the_reason_of_a_close_is_in_its_frame(url: str):
    with live(url) as socket:
        send(socket, {"type": "session.start", "model": "other"})
        assert_fatal(socket, "model_not_found", 1008)
        assert socket.close_reason == "model_not_found"


def test_a_frame_in_fragments_with_pings_between_is_one_frame(url: str):
    with live(url) as socket:
        start(socket)
        data = binary_frame(0.0, picture("red"))
        size = len(data) // 10 + 1

        def fragments() -> Iterator[bytes]:
            for at in range(0, len(data), size):
                yield data[at : at + size]
                socket.ping()

        socket.send(fragments())
        assert receive(socket)["text"] == "red 1"


def test_a_full_server_says_when_to_come_back():
    with running(FakeEngine(), settings_with(limits={"sessions": 1})) as url, live(url) as first:
        start(first)
        with live(url) as second:
            send(second, {"type": "session.start"})
            assert assert_fatal(second, "too_many_sessions", 1013)["retry_after_s"] >= 1
