"""Broken handshakes and WebSocket frames, byte by byte: the client gets a close code, the server lives."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import binary_frame, picture, running, settings_with

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
FIN, RSV1 = 0x80, 0x40
NO_MASK = bytes(4)
"""A mask that leaves the data as it is."""
START = json.dumps({"type": "session.start"}).encode()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    limits = {"frame_bytes": 100_000, "start_seconds": 2.0, "idle_seconds": 2.0}
    with running(FakeEngine(), settings_with(limits=limits)) as address:
        yield address


class RawSocket:
    """A WebSocket without a library, which would refuse to send what these tests send."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.rest = b""

    def send(
        self, opcode: int, data: bytes = b"", *, first: int = FIN, masked: bool = True, length: int = -1
    ) -> None:
        """Send a frame; `first` holds its FIN and RSV bits, and `length` may lie."""
        size = len(data) if length < 0 else length
        head = bytes([first | opcode])
        mask_bit = 0x80 if masked else 0
        if size < 126:
            head += bytes([mask_bit | size])
        elif size < 1 << 16:
            head += bytes([mask_bit | 126]) + struct.pack("!H", size)
        else:
            head += bytes([mask_bit | 127]) + struct.pack("!Q", size)
        self.connection.sendall(head + (NO_MASK if masked else b"") + data)

    def receive(self) -> tuple[int, bytes]:
        """The next frame's opcode and data; `(CLOSE, b"")` where the connection just ends."""
        head = self._read(2)
        if len(head) < 2:
            return CLOSE, b""
        size = head[1] & 0x7F
        if size == 126:
            [size] = struct.unpack("!H", self._read(2))
        elif size == 127:
            [size] = struct.unpack("!Q", self._read(8))
        return head[0] & 0x0F, self._read(size)

    def event(self) -> dict:
        """The next text message."""
        opcode, data = self.receive()
        assert opcode == TEXT, (opcode, data)
        return json.loads(data)

    def close_code(self) -> int:
        """The code that the server closes with; messages before it are passed over."""
        while (frame := self.receive())[0] != CLOSE:
            pass
        assert frame[1], "the connection ended without a code"
        return struct.unpack("!H", frame[1][:2])[0]

    def _read(self, size: int) -> bytes:
        while len(self.rest) < size:
            try:
                data = self.connection.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                break
            self.rest += data
        found, self.rest = self.rest[:size], self.rest[size:]
        return found


def dial(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(10)
    return connection


def handshake(url: str, **changes: str | None) -> bytes:
    headers = {
        "Host": url.removeprefix("http://"),
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join(["GET /v1/live HTTP/1.1", *lines, "", ""]).encode()


@contextmanager
def raw(url: str) -> Iterator[RawSocket]:
    """An open WebSocket, without a session."""
    with dial(url) as connection:
        connection.sendall(handshake(url))
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(1)
        assert answer.startswith(b"HTTP/1.1 101"), answer
        yield RawSocket(connection)


@contextmanager
def session(url: str) -> Iterator[RawSocket]:
    """An open WebSocket with a session."""
    with raw(url) as live:
        live.send(TEXT, START)
        assert live.event()["type"] == "session.started"
        yield live


def assert_alive(url: str) -> None:
    assert httpx.get(f"{url}/readyz").status_code == 200
    with session(url) as live:
        live.send(BINARY, binary_frame(0.0, picture("green")))
        assert live.event()["text"] == "green 1"


@pytest.mark.parametrize(
    ("opcode", "data", "how", "code"),
    [
        pytest.param(3, b"", {}, 1002, id="an opcode for data that does not exist"),
        pytest.param(11, b"", {}, 1002, id="an opcode for control that does not exist"),
        pytest.param(TEXT, START, {"first": FIN | RSV1}, 1002, id="a reserved bit"),
        pytest.param(TEXT, START, {"masked": False}, 1002, id="no mask"),
        pytest.param(0, b"rest", {}, 1002, id="the rest of nothing"),
        pytest.param(PING, b"x" * 126, {}, 1002, id="a ping that is too long"),
        pytest.param(PING, b"x", {"first": 0}, 1002, id="a ping in pieces"),
        pytest.param(TEXT, b"\xff\xfe", {}, 1007, id="a text that is none"),
        pytest.param(TEXT, b"\xed\xa0\xbd", {}, 1007, id="half a character"),
        pytest.param(CLOSE, b"\x03", {}, 1002, id="half a close code"),
        pytest.param(CLOSE, struct.pack("!H", 1005), {}, 1002, id="a close code that is never sent"),
        pytest.param(CLOSE, struct.pack("!H", 1000) + b"\xff", {}, 1007, id="a close reason that is no text"),
        pytest.param(BINARY, b"x", {"length": 1 << 40}, 1009, id="a terabyte is announced"),
        pytest.param(BINARY, b"x" * 10, {"length": 20_000_000}, 1009, id="more than a message may hold"),
    ],
)
@pytest.mark.parametrize("started", [False, True], ids=["before the start", "in a session"])
def test_a_broken_frame_closes_with_its_code(
    url: str, started: bool, opcode: int, data: bytes, how: dict[str, int], code: int
):
    with session(url) if started else raw(url) as live:
        live.send(opcode, data, **how)  # type: ignore[arg-type]
        assert live.close_code() == code
    assert_alive(url)


def test_a_message_in_pieces_with_a_ping_between_is_one_frame(url: str):
    frame = binary_frame(0.0, picture("red"))
    pieces = [frame[start : start + 20] for start in range(0, 200, 20)]
    pieces[-1] = frame[180:]
    with session(url) as live:
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            live.send(BINARY if number == 0 else 0, piece, first=FIN if last else 0)
            if number == 4:
                live.send(PING, b"between")
        assert live.receive() == (PONG, b"between")
        assert live.event()["text"] == "red 1"


def test_pieces_that_never_end_are_refused_by_their_size(url: str):
    with session(url) as live:
        try:
            live.send(BINARY, b"x" * 60_000, first=0)
            for _ in range(400):
                live.send(0, b"x" * 60_000, first=0)
        except ConnectionError:
            pass  # the server has hung up already
        assert live.close_code() == 1009
    assert_alive(url)


def test_one_client_that_leaves_in_the_middle_of_a_frame_does_not_matter(url: str):
    for cut in (1, 2, 5, 30):
        with session(url) as live:
            whole = bytes([FIN | BINARY, 0x80 | 100]) + b"mask" + b"x" * 100
            live.connection.sendall(whole[:cut])
    assert_alive(url)


def test_pings_alone_do_not_keep_a_session_and_the_reason_is_said(url: str):
    with session(url) as live:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            live.send(PING, b"here")
            opcode, data = live.receive()
            if opcode == TEXT:
                break
            time.sleep(0.1)
        event = json.loads(data)
        assert (event["error"]["code"], event["fatal"]) == ("session_idle", True)
        assert live.close_code() == 1008
    assert_alive(url)


@pytest.mark.parametrize(
    "changes",
    [
        {"Sec_WebSocket_Key": None},
        {"Sec_WebSocket_Key": "short"},
        {"Sec_WebSocket_Version": "8"},
        {"Sec_WebSocket_Version": None},
        {"Upgrade": "h2c"},
        {"Connection": "close"},
    ],
    ids=lambda changes: str(changes),
)
def test_a_wrong_handshake_is_answered_as_http(url: str, changes: dict[str, str | None]):
    with dial(url) as connection:
        connection.sendall(handshake(url, **changes))
        status = connection.recv(65536).split()[1]
    assert status in (b"400", b"404", b"426")
    assert_alive(url)


def test_half_handshakes_hold_up_nobody(url: str):
    waiting = []
    for cut in range(5, 145, 5):
        waiting.append(dial(url))
        waiting[-1].sendall(handshake(url)[:cut])
    began = time.monotonic()
    assert_alive(url)
    assert time.monotonic() - began < 5
    for connection in waiting:
        connection.close()
    assert_alive(url)


def test_a_connection_closed_and_opened_again_at_once_finds_its_place_free():
    with running(FakeEngine(), settings_with(limits={"sessions": 1})) as url:
        for _ in range(5):
            with session(url) as live:
                live.send(CLOSE, struct.pack("!H", 1001))
                assert live.close_code() == 1001
