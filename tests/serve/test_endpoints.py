"""Live sessions and files on the real Ray Serve when their endpoint is killed, and with two endpoints."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from infra import caption_client
from pipelines.deploy import ray_serve
from serve.session_keeper import HEARD_EVERY_S
from tests.support.serve.cluster import APPLICATION, replicas, wait_until
from tests.support.serve.live_client import live, lose, push, receive, resume, send, start
from tests.support.serve.server import MODEL, binary_frame, image_part, picture, write_clip

pytestmark = pytest.mark.slow
SESSIONS = "/v1/streaming/sessions"
KEPT_S = 1.0
"""Seconds after which what a session has come to is kept elsewhere, with much to spare."""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "model_folder": str(tmp_path_factory.mktemp("model")),
        "model_name": MODEL,
        "fingerprint": "first",
        "checkpoint": "c",
        "max_new_tokens": 32,
        "live_query": "",
        "replicas": {"min": 1, "max": 1},
        "endpoints": 2,
        "num_cpus": 0.1,
        "engine": "tests.support.serve.fakes:FakeEngine",
    }


@pytest.fixture(autouse=True)
def two_endpoints(url: str, cluster: ServeSubmissionClient) -> None:
    wait_until(lambda: len(replicas(cluster, "endpoint")) == 2, 60, "two endpoints run")


def kill_endpoint_of(cluster: ServeSubmissionClient, session_id: str) -> None:
    name = session_id.split("-")[1]
    [one] = [one for one in replicas(cluster, "endpoint") if name in one["replica_id"]]
    os.kill(one["pid"], signal.SIGKILL)


def engine_streams(url: str) -> int:
    """Streams that the engine holds."""
    [count] = re.findall(r"^casa_engine_streams(?:\{.*\})? (\S+)$", httpx.get(f"{url}/metrics").text, re.M)
    return int(float(count))


def call(url: str, session_id: str, timestamp: float, colour: str) -> None:
    """Send a frame by a connection of its own."""
    answer = httpx.post(
        f"{url}{SESSIONS}/{session_id}/frame?timestamp={timestamp}",
        content=picture(colour),
        headers={"content-type": "image/png"},
        timeout=60,
    )
    assert answer.status_code == 202, answer.text


def events_after(url: str, session_id: str, after: int, last: float) -> list[dict[str, Any]]:
    """What a session tells after an event, up to the caption of a frame."""
    found = []
    with httpx.stream("GET", f"{url}{SESSIONS}/{session_id}/events?after={after}", timeout=60) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: "):
                found.append(httpx.Response(200, text=line[6:]).json())
                if found[-1].get("timestamp") == last:
                    break
    return [event for event in found if event["type"] != "session.resumed"]


def test_a_session_goes_on_in_another_endpoint_when_its_own_is_killed(
    url: str, cluster: ServeSubmissionClient
):
    with live(url) as socket:
        session_id = start(socket, query="I see")["session_id"]
        assert push(socket, 0.0, "red")["text"] == "I see red 1"
        last = push(socket, 1.0, "green")["event"]
        time.sleep(KEPT_S)
        kill_endpoint_of(cluster, session_id)
        with live(url) as again:
            assert resume(again, session_id, after=last)["lost"] == 0
            moved = receive(again)
            assert (moved["type"], moved["exact"], moved["event"]) == ("session.moved", False, last + 1)
            caption = push(again, 2.0, "green")
            assert (caption["text"], caption["event"]) == ("", last + 2), "the latest frame is known"
            assert push(again, 3.0, "blue")["text"].startswith("I see blue")
            wait_until(lambda: engine_streams(url) == 1, 30, "the stream of the dead endpoint has ended")
            send(again, {"type": "session.end"})
            assert receive(again)["received"] == 4


def test_by_plain_calls_it_goes_on_too(url: str, cluster: ServeSubmissionClient):
    session_id = httpx.post(f"{url}{SESSIONS}", json={"query": "now"}).json()["id"]
    call(url, session_id, 0.0, "red")
    last = events_after(url, session_id, 0, 0.0)[-1]["event"]
    time.sleep(KEPT_S)
    kill_endpoint_of(cluster, session_id)
    call(url, session_id, 1.0, "blue")
    events = events_after(url, session_id, last, 1.0)
    assert [event["type"] for event in events] == ["session.moved", "caption"]
    assert [event["event"] for event in events] == [last + 1, last + 2]
    assert httpx.delete(f"{url}{SESSIONS}/{session_id}").json()["usage"]["frames"] == 2


def test_calls_about_a_session_find_the_endpoint_that_has_it(url: str):
    ids = [httpx.post(f"{url}{SESSIONS}", json={"query": "now"}).json()["id"] for _ in range(8)]
    assert len({one.split("-")[1] for one in ids}) == 2, "both endpoints have some"
    for timestamp, colour in enumerate(("red", "green", "blue")):
        for session_id in ids:
            call(url, session_id, float(timestamp), colour)
    for session_id in ids:
        types = [event["type"] for event in events_after(url, session_id, 0, 2.0)]
        assert types == ["session.started", "caption", "caption", "caption"], "none has moved"
        httpx.delete(f"{url}{SESSIONS}/{session_id}")


def test_a_session_resumed_at_another_endpoint_than_the_one_that_has_it_moves_exactly(url: str):
    colours = ["red", "green"] * 8
    with live(url) as socket:
        session_id = start(socket, query="frame")["session_id"]
        last, moves = push(socket, 0.0, "blue")["event"], []
        lose(socket)
    for number, colour in enumerate(colours, 1):
        with live(url) as socket:
            assert (resumed := resume(socket, session_id, after=last)).get("lost") == 0, resumed
            socket.send(binary_frame(number, picture(colour)))
            event = receive(socket)
            if event["type"] == "session.moved":
                moves.append(event["exact"])
                event = receive(socket)
            assert event["text"] == f"frame {colour} {number + 1}", "nothing was forgotten"
            last = event["event"]
            lose(socket)
    assert moves
    assert all(moves)
    assert last == len(colours) + 2 + len(moves), "events are numbered on"


def test_an_uploaded_picture_is_there_at_both_endpoints(url: str):
    file = httpx.post(f"{url}/v1/files", content=picture("red"), headers={"content-type": "image/png"}).json()
    part = {**image_part(b""), "image_url": {"url": file["id"]}}
    for _ in range(8):
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "ok"}]}]
        answer = httpx.post(f"{url}/v1/chat/completions", json={"model": MODEL, "messages": messages})
        assert answer.json()["choices"][0]["message"]["content"] == "red ok"
    assert httpx.delete(f"{url}/v1/files/{file['id']}").json()["deleted"]
    assert {httpx.get(f"{url}/v1/files/{file['id']}").status_code for _ in range(4)} == {404}


def test_a_message_may_show_several_uploaded_pictures(url: str):
    send = {"content": picture("red"), "headers": {"content-type": "image/png"}}
    files = [httpx.post(f"{url}/v1/files", **send).json()["id"] for _ in range(3)]
    parts = [{**image_part(b""), "image_url": {"url": file}} for file in files]
    content = [*parts, {"type": "text", "text": "ok"}]
    call = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    for _ in range(8):  # all are fetched at once
        answer = httpx.post(f"{url}/v1/chat/completions", json=call, timeout=20)
        assert answer.json()["choices"][0]["message"]["content"].endswith("ok"), answer.text


def test_a_video_is_captioned_whole_though_its_endpoint_is_killed(
    url: str, cluster: ServeSubmissionClient, tmp_path: Path
):
    clip = write_clip(tmp_path / "clip.mp4", ["red", "blue", "green", "white"] * 2)
    said: dict[float, str] = {}
    for event in caption_client.caption(url, clip, query="now", realtime=True):
        if event["type"] == "caption":
            assert event["timestamp"] not in said
            said[event["timestamp"]] = event["text"]
        if len(said) == 6 and event["type"] == "caption":
            for one in replicas(cluster, "endpoint")[:1]:
                os.kill(one["pid"], signal.SIGKILL)
    assert list(said) == [number / 2 for number in range(16)]
    colours = [text.split()[1] for text in said.values() if text]
    assert colours == ["red", "blue", "green", "white"] * 2


def test_when_all_endpoints_are_killed_it_goes_on_in_a_new_one(url: str, cluster: ServeSubmissionClient):
    with live(url) as socket:
        session_id = start(socket, query="I see")["session_id"]
        last = push(socket, 0.0, "red")["event"]
        time.sleep(KEPT_S)
        killed = {one["pid"] for one in replicas(cluster, "endpoint")}
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: {one["pid"] for one in replicas(cluster, "endpoint")} - killed, 60, "another one runs")
    with live(url) as again:
        resumed = resume(again, session_id, after=last)
        assert (resumed["type"], resumed["received"]) == ("session.resumed", 1), resumed
        assert receive(again)["exact"] is False
        assert push(again, 1.0, "red")["text"] == ""
        send(again, {"type": "session.end"})


def test_sessions_without_a_connection_move_exactly_to_the_endpoints_of_a_rolling_update(
    url: str, cluster: ServeSubmissionClient, address: dict[str, Any], arguments: dict[str, Any]
):
    ids = [httpx.post(f"{url}{SESSIONS}", json={"query": "now"}).json()["id"] for _ in range(4)]
    last = {}
    for session_id in ids:
        call(url, session_id, 0.0, "red")
        last[session_id] = events_after(url, session_id, 0, 0.0)[-1]["event"]
    before = {one["pid"] for one in replicas(cluster, "endpoint")}
    ray_serve.start(cluster, address, {**arguments, "fingerprint": "second"}, {}, APPLICATION)
    wait_until(lambda: not before & {one["pid"] for one in replicas(cluster, "endpoint")}, 60, "they went")
    for session_id in ids:
        call(url, session_id, 1.0, "blue")
        events = events_after(url, session_id, last[session_id], 1.0)
        assert events[-1]["text"] == "now blue 2", "nothing was forgotten"
        assert all(event["exact"] for event in events[:-1])
        httpx.delete(f"{url}{SESSIONS}/{session_id}")


def test_what_a_store_that_is_killed_had_is_soon_kept_again(url: str, cluster: ServeSubmissionClient):
    [store] = replicas(cluster, "store")
    with live(url) as socket:
        session_id = start(socket, query="I see")["session_id"]
        last = push(socket, 0.0, "red")["event"]
        os.kill(store["pid"], signal.SIGKILL)
        another = lambda: {one["pid"] for one in replicas(cluster, "store")} - {store["pid"]}  # noqa: E731
        wait_until(another, 60, "another store runs")
        time.sleep(HEARD_EVERY_S + KEPT_S)
        kill_endpoint_of(cluster, session_id)
        with live(url) as again:
            resumed = resume(again, session_id, after=last)
            assert resumed["type"] == "session.resumed", resumed
            assert receive(again)["exact"] is False
            assert push(again, 1.0, "red")["text"] == ""
            send(again, {"type": "session.end"})
