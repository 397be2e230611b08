"""A hand-written client of the live WebSocket, one message at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.serve.server import binary_frame, picture

Event = dict[str, Any]


@contextmanager
def live(url: str, **headers: str) -> Iterator[ClientConnection]:
    with connect(f"{url.replace('http', 'ws', 1)}/v1/live", additional_headers=headers) as socket:
        yield socket


def send(socket: ClientConnection, message: Event) -> None:
    socket.send(json.dumps(message))


def receive(socket: ClientConnection) -> Event:
    return json.loads(socket.recv(timeout=10))


def start(socket: ClientConnection, **fields: Any) -> Event:
    send(socket, {"type": "session.start", **fields})
    started = receive(socket)
    assert started["type"] == "session.started", started
    return started


def push(socket: ClientConnection, timestamp: float, colour: str) -> Event:
    socket.send(binary_frame(timestamp, picture(colour, kind="JPEG")))
    return receive(socket)


def assert_fatal(socket: ClientConnection, code: str, close_code: int) -> Event:
    event = receive(socket)
    assert (event["type"], event["error"]["code"], event["fatal"]) == ("error", code, True), event
    with pytest.raises(ConnectionClosed):
        socket.recv(timeout=5)
    assert socket.close_code == close_code
    return event


def resume(socket: ClientConnection, session_id: str, after: int = 0) -> Event:
    """Continue a session with the events after a number."""
    send(socket, {"type": "session.resume", "session_id": session_id, "after": after})
    return receive(socket)


def lose(socket: ClientConnection) -> None:
    """Break the connection without a word."""
    socket.socket.close()


def eventually(holds: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def open_sessions(url: str) -> int:
    """Live sessions that the endpoint counts."""
    return httpx.get(f"{url}/healthz").json()["live_sessions"]
