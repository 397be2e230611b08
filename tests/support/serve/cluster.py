"""An endpoint on the real Ray Serve: its replicas, and a live client that keeps what it is told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.serve.server import binary_frame, picture

RUNNING = "RUNNING"
APPLICATION = "casa-test"
"""Name in Serve of the endpoint under test."""


def replicas(cluster: ServeSubmissionClient, deployment: str = "engine") -> list[dict[str, Any]]:
    """The replicas of a deployment that run: `actor_id`, `pid`, `replica_id`, …"""
    deployments = cluster.get_serve_details()["applications"][APPLICATION]["deployments"]
    found = deployments.get(deployment, {}).get("replicas", [])
    return [one for one in found if one["state"] == RUNNING and psutil.pid_exists(one["pid"])]


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What a condition gives once it gives something.

    Raises:
        AssertionError: It has not within so many seconds.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds:g} s")


class LiveClient:
    """A live session of one colour a frame: what it was told, by frame."""

    def __init__(self, socket: ClientConnection, query: str, model: str | None = None) -> None:
        self._socket = socket
        self.texts: dict[float, str] = {}
        self.moves: list[dict[str, Any]] = []
        self.others: list[dict[str, Any]] = []
        socket.send(json.dumps({"type": "session.start", "query": query, "model": model}))
        started = json.loads(socket.recv(timeout=30))
        assert started["type"] == "session.started", started

    def show(self, timestamp: float, colour: str) -> None:
        """Send a frame."""
        try:
            self._socket.send(binary_frame(timestamp, picture(colour)))
        except ConnectionClosed as closed:
            raise AssertionError(f"the server closed after {self._rest()}") from closed

    def end(self) -> None:
        """End the session."""
        self._socket.send(json.dumps({"type": "session.end"}))

    def _rest(self) -> list[Any]:
        """What has come and was not heard."""
        rest = []
        with suppress(ConnectionClosed):
            while True:
                rest.append(self._socket.recv(timeout=1))
        return rest

    def ask(self, query: str) -> None:
        """Send a further question."""
        self._socket.send(json.dumps({"type": "session.prompt", "query": query}))

    def hear(self, timestamp: float, seconds: float = 30) -> str:
        """The words about a frame; what else comes before is kept."""
        end = time.monotonic() + seconds
        while timestamp not in self.texts:
            event = json.loads(self._socket.recv(timeout=end - time.monotonic()))
            match event["type"]:
                case "caption":
                    assert event["timestamp"] not in self.texts, "no frame is captioned twice"
                    self.texts[event["timestamp"]] = event["text"]
                case "session.moved":
                    self.moves.append(event)
                case _:
                    self.others.append(event)
        return self.texts[timestamp]


@contextmanager
def watching(url: str, query: str, model: str | None = None) -> Iterator[LiveClient]:
    """A live session of an endpoint."""
    with connect(f"{url.replace('http', 'ws', 1)}/v1/live") as socket:
        yield LiveClient(socket, query, model)
