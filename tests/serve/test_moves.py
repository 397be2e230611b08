"""Live streams and answers on the real Ray Serve while replicas leave, are replaced, or are killed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import psutil
import pytest
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from pipelines.deploy import ray_serve
from tests.support.serve.cluster import APPLICATION, LiveClient, replicas, wait_until, watching
from tests.support.serve.server import MODEL, question

STREAMS = 6


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "model_folder": str(tmp_path_factory.mktemp("model")),
        "model_name": MODEL,
        "fingerprint": "first",
        "checkpoint": "c",
        "max_new_tokens": 32,
        "live_query": "",
        "replicas": {"min": 2, "max": 2},
        "num_cpus": 0.1,
        "engine": "tests.support.serve.fakes:FakeEngine",
        "limits": {"idle_seconds": 300},
    }


@pytest.fixture
def clients(url: str, cluster: ServeSubmissionClient) -> Iterator[list[LiveClient]]:
    idle = lambda: httpx.get(f"{url}/healthz").json()["live_sessions"] == 0  # noqa: E731
    wait_until(lambda: len(replicas(cluster)) == 2 and idle(), 60, "two engines run, without streams")
    with ExitStack() as stack:
        clients = [stack.enter_context(watching(url, f"viewer{number}")) for number in range(STREAMS)]
        for number, client in enumerate(clients):
            client.show(0.0, "red")
            assert client.hear(0.0) == f"viewer{number} red 1"
        yield clients
        for client in clients:
            client.end()  # or they would wait for their viewers, who may have lost the connection


def asking(url: str, stop: threading.Event, failed: list[str]) -> threading.Thread:
    """A client that asks one plain and one streamed question after the other."""

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                for stream in (False, True):
                    body = {"model": MODEL, "messages": question("one two three"), "stream": stream}
                    answer = client.post(f"{url}/v1/chat/completions", json=body)
                    whole = "[DONE]" in answer.text if stream else "one two three" in answer.text
                    if answer.status_code != 200 or not whole:
                        failed.append(f"{answer.status_code} {answer.text}")

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


@pytest.mark.slow
def test_when_an_engine_is_killed_its_streams_go_on_without_the_client_sending_anything_again(
    url: str, cluster: ServeSubmissionClient, clients: list[LiveClient]
):
    stop, failed = threading.Event(), []
    asker = asking(url, stop, failed)
    os.kill(replicas(cluster)[0]["pid"], signal.SIGKILL)
    for number, client in enumerate(clients):
        client.show(1.0, "red")
        client.show(2.0, "blue")
        assert client.hear(1.0) == "", "the latest frame is known: nothing has changed"
        count = 2 if client.moves else 3
        assert client.hear(2.0) == f"viewer{number} blue {count}"
    moved = [client for client in clients if client.moves]
    assert all(client.moves[0]["exact"] is False for client in moved)
    assert 0 < len(moved) < STREAMS, "each engine held some"
    stop.set()
    asker.join()
    assert not failed


@pytest.mark.slow
def test_after_a_rolling_update_every_stream_goes_on_exactly_and_no_request_failed(
    url: str,
    cluster: ServeSubmissionClient,
    address: dict[str, Any],
    arguments: dict[str, Any],
    clients: list[LiveClient],
):
    stop, failed = threading.Event(), []
    asker = asking(url, stop, failed)
    before = {one["pid"] for one in replicas(cluster)}
    ray_serve.start(cluster, address, {**arguments, "fingerprint": "second"}, {}, APPLICATION)
    wait_until(lambda: not any(map(psutil.pid_exists, before)), 60, "the old engines are gone")
    for number, client in enumerate(clients):
        client.show(1.0, "blue")
        assert client.hear(1.0) == f"viewer{number} blue 2", "the count goes on: nothing was forgotten"
        assert [move["exact"] for move in client.moves] in ([True], [True, True])
        assert not client.others
    stop.set()
    asker.join()
    assert not failed
    assert httpx.get(f"{url}/healthz").json()["fingerprint"] == "second"


@pytest.mark.slow
def test_a_question_asked_while_a_stream_moves_is_answered(
    url: str, cluster: ServeSubmissionClient, clients: list[LiveClient]
):
    for pid in {one["pid"] for one in replicas(cluster)}:
        os.kill(pid, signal.SIGKILL)
    for client in clients:
        client.ask("what is it")
        client.show(1.0, "green")
    for number, client in enumerate(clients):
        assert client.hear(1.0, 60).startswith(f"viewer{number} green")
        answers = [event for event in client.others if event["type"] == "answer"]
        assert [event["query"] for event in answers] == ["what is it"]


@pytest.mark.slow
def test_engines_come_with_streams_and_go_with_them_and_no_stream_is_cut(
    url: str, cluster: ServeSubmissionClient, address: dict[str, Any], arguments: dict[str, Any]
):
    scaled = {
        **arguments,
        "fingerprint": "third",
        "replicas": {"min": 1, "max": 3, "up_after_s": 0, "down_after_s": 1},
        "limits": {"sessions": 4, "idle_seconds": 300},
    }
    ray_serve.start(cluster, address, scaled, {}, APPLICATION)
    stop, failed = threading.Event(), []
    asker = asking(url, stop, failed)
    with ExitStack() as stack:
        clients = []
        for most, engines in ((4, 2), (8, 3)):
            for number in range(len(clients), most):
                clients.append(stack.enter_context(watching(url, f"viewer{number}")))
            wait_until(lambda count=engines: len(replicas(cluster)) == count, 120, f"{engines} engines run")
        for number, client in enumerate(clients):
            client.show(0.0, "red")
            assert client.hear(0.0) == f"viewer{number} red 1"
            assert not client.moves, "it stays where it is while engines are added"
        before = {one["pid"] for one in replicas(cluster)}
        for client in clients[2:]:
            client.end()
        wait_until(lambda: len(replicas(cluster)) == 1, 120, "one engine is left")
        for number, client in enumerate(clients[:2]):
            client.show(1.0, "green")
            assert client.hear(1.0) == f"viewer{number} green 2"
            assert all(move["exact"] for move in client.moves)
            assert not client.others
        gone = before - {one["pid"] for one in replicas(cluster)}
        wait_until(lambda: not any(map(psutil.pid_exists, gone)), 60, "the engines that went are released")
    stop.set()
    asker.join()
    assert not failed
