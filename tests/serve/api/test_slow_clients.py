"""Connections that never finish a request's head are closed, no others; large bodies are read at a pace."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from infra import http_protocol
from infra.endpoint_settings import MIB
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import MODEL, running, settings_with


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.5)
    with running(FakeEngine(delay_s=0.3), settings_with()) as address:
        yield address


def dial(url: str, first: bytes = b"") -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(10)
    connection.sendall(first)
    return connection


def test_a_client_that_says_nothing_is_let_go(url: str):
    began = time.monotonic()
    with dial(url) as connection:
        assert connection.recv(1024) == b""
    assert 0.3 < time.monotonic() - began < 8


@pytest.mark.parametrize("first", [b"G", b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n", b"POST /v1/chat"])
def test_half_a_head_is_told_that_it_was_too_slow(url: str, first: bytes):
    with dial(url, first) as connection:
        assert connection.recv(1024).startswith(b"HTTP/1.1 408")
        assert connection.recv(1024) == b""


def test_a_head_that_drips_does_not_move_its_deadline(url: str):
    began = time.monotonic()
    with dial(url, b"GET / HTTP/1.1\r\nx: ") as connection:
        connection.settimeout(0.1)
        while time.monotonic() - began < 10:
            try:
                assert connection.recv(1024)[:12] in (b"HTTP/1.1 408", b"")
                break
            except TimeoutError:
                connection.sendall(b"a")
    assert time.monotonic() - began < 8


def test_a_head_without_end_is_refused_by_its_size(url: str):
    with dial(url, b"GET / HTTP/1.1\r\nx: ") as connection:
        try:
            for _ in range(1000):
                connection.sendall(b"a" * 65536)
            answer = connection.recv(1024)
        except ConnectionError:
            return  # it has hung up already
        assert answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))


def test_the_second_head_of_a_connection_has_a_deadline_as_well(url: str):
    with dial(url, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /heal")
        assert connection.recv(1024).startswith(b"HTTP/1.1 408")


def test_a_large_body_that_was_refused_by_its_path_leaves_the_connection_as_it_is(url: str):
    with httpx.Client() as client:
        for _ in range(3):
            assert client.post(f"{url}/nowhere", content=b"x" * 1_000_000).status_code == 404
            assert client.get(f"{url}/healthz").status_code == 200


def test_the_end_of_a_body_that_was_answered_is_no_part_of_the_next_head(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http_protocol, "HEAD_BYTES", 1000)
    with dial(
        url, b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 20001\r\n\r\nx"
    ) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")
        connection.sendall(b"x" * 20_000)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_the_rest_of_a_body_that_was_answered_has_a_deadline(url: str):
    with dial(
        url, b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nx"
    ) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")
        connection.sendall(b"x")
        assert connection.recv(1024) == b""


def test_a_slow_answer_a_slow_body_and_a_quiet_websocket_have_longer(url: str):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "one two three four"}]}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20).status_code == 200
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with dial(url, f"{head}content-length: {len(data)}\r\n\r\n".encode() + data[:10]) as connection:
        time.sleep(1.0)
        connection.sendall(data[10:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    with connect(f"{url.replace('http', 'ws', 1)}/v1/live") as live:
        time.sleep(1.0)
        live.send(json.dumps({"type": "session.start"}))
        assert json.loads(live.recv(timeout=10))["type"] == "session.started"


def poured(url: str, megabytes: int) -> float:
    """Seconds in which a server reads, and then refuses, so much of a body whose length it is not told."""
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    piece = b"%x\r\n%s\r\n" % (1 << 16, b" " * (1 << 16))
    began = time.monotonic()
    with dial(url, head) as connection:
        for _ in range(16 * megabytes):
            connection.sendall(piece)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(1024).startswith(b"HTTP/1.1 400")
    return time.monotonic() - began


def test_large_bodies_are_read_at_a_pace_all_together_and_small_ones_as_fast_as_they_come(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http_protocol, "BODIES_BYTES_PER_S", 4 * MIB)
    with ThreadPoolExecutor(4) as clients:
        times = list(clients.map(lambda _: poured(url, 2), range(4)))
    # A pace for all: 4 of 8 MiB are beyond what is read freely, though not of what lies in the sockets.
    assert 0.5 < max(times) < 5
    monkeypatch.setattr(http_protocol, "BODIES_BYTES_PER_S", 1)
    poured(url, 0)
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_body_of_a_gigabyte_is_refused_before_the_app_is_asked(url: str):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
    with dial(url, head % (1 << 30) + b"x" * 100_000) as connection:
        answer = connection.recv(1024)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer
        with suppress(ConnectionResetError):
            assert connection.recv(1024) == b""
    with dial(url, head % ((1 << 30) - 1)) as connection:
        assert b"request_too_large" in connection.recv(4096), "below it the app says what its limit is"


def test_a_body_that_comes_byte_by_byte_is_handed_on_in_one_and_a_large_one_in_pieces():
    messages: list[tuple[int, bool]] = []

    def counting(app: Any) -> Any:
        async def count(scope: Any, receive: Any, send: Any) -> None:
            async def noted() -> Any:
                message = await receive()
                if message["type"] == "http.request":
                    messages.append((len(message["body"]), message["more_body"]))
                return message

            await app(scope, noted, send)

        return count

    with running(FakeEngine(), settings_with(), around=counting) as url:
        text = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(text)}\r\n"
        with dial(url, head.encode() + b"content-type: application/json\r\n\r\n") as connection:
            for at in range(len(text)):
                connection.sendall(text[at : at + 1])
                time.sleep(0.002)
            assert connection.recv(1024).startswith(b"HTTP/1.1 200")
        assert messages == [(len(text), False)]
        messages.clear()
        assert httpx.post(f"{url}/v1/files", files={"file": b"x" * 300_000}).status_code in (200, 400)
        assert len(messages) >= 2, "a large body does not wait for its end"
        assert sum(size for size, _ in messages) > 300_000
