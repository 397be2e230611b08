"""A deadline for the heads of HTTP requests and a pace for large bodies: uvicorn, in our server and in Ray's
proxy, has neither.

A client that connects and says nothing, or half a head, would hold its connection as long as it likes; and a
few that send as fast as they can would have the event loop read their bodies only, above all in Ray's proxy,
which reads on before the endpoint has refused.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 15.0
HEAD_BYTES = 64 * 1024
FREE_BODY_BYTES = 1024 * 1024
"""Of each body, read as fast as it comes."""
BODIES_BYTES_PER_S = 16 * 1024 * 1024
"""Of what is beyond, in all bodies of a process together. Two cores carry 100 MB/s through Ray's proxy, and
little else; a photograph of 8 MB takes half a second more."""
MOST_BODY_BYTES = 1024**3
"""No setting admits a body of so many bytes: one that declares it is refused (413) before an app is asked."""
UNREAD_SECONDS = 2.0
"""Time for a refused client to read that it was, before its connection is closed with its body unread."""
HANDED_ON_BYTES = 32 * 1024
"""A body is handed on in pieces of at least so many bytes: each costs a call through Ray's proxy, and a body
may come byte by byte."""
_REFUSAL = "HTTP/1.1 {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _Pace:
    """When so many bytes may have been read, at `BODIES_BYTES_PER_S` for all together."""

    def __init__(self) -> None:
        self._read_at = 0.0

    def wait_s(self, count: int) -> float:
        """Seconds to wait after ``count`` more bytes were read."""
        now = time.monotonic()
        self._read_at = max(self._read_at, now) + count / BODIES_BYTES_PER_S
        return self._read_at - now


_pace = _Pace()


class _PacedFlow(FlowControl):
    """uvicorn's flow control, whose reading may also be held for a while."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._held = False

    def hold(self, seconds: float) -> None:
        """Read nothing for so long, whatever is asked for meanwhile."""
        if self._held:
            return
        if not self.read_paused:
            self._transport.pause_reading()
        self._held = True
        asyncio.get_running_loop().call_later(seconds, self._release)

    def pause_reading(self) -> None:
        """As the base class's."""
        if self._held:
            self.read_paused = True
        else:
            super().pause_reading()

    def resume_reading(self) -> None:
        """As the base class's, once it is not held."""
        if self._held:
            self.read_paused = False
        else:
            super().resume_reading()

    def _release(self) -> None:
        self._held = False
        if not self.read_paused and not self._transport.is_closing():
            self._transport.resume_reading()


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which closes a connection whose request's head is not whole in time (408), or
    larger than `HEAD_BYTES` (431), and reads large bodies at a pace."""

    _deadline: asyncio.TimerHandle | None = None
    _arrived = _body = 0
    _unread = False
    _in_message = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self.flow = _PacedFlow(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Look whether the head is whole by now; the next one is waited for from its first byte on."""
        in_body = self._in_message
        super().data_received(data)
        if self._unread or self.transport.is_closing() or not self._awaits_head():
            self._stop()
            return
        if not (in_body or self._in_message):  # else it is a body's, whose end may be in it
            self._arrived += len(data)
        if self._arrived > HEAD_BYTES:
            self._refuse("431 Request Header Fields Too Large")
        elif self._deadline is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """The parser's: a head is whole."""
        declared = dict(self.headers).get(b"content-length", b"")
        if declared.isdigit() and int(declared) >= MOST_BODY_BYTES:
            self._unread = True
            self.transport.write(_REFUSAL.format("413 Content Too Large").encode())
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(UNREAD_SECONDS, self.transport.close)
            return
        super().on_headers_complete()
        self._in_message = True

    def on_body(self, body: bytes) -> None:
        """The parser's: a part of a body."""
        if self._unread:
            return
        self._body += len(body)
        few = len(self.cycle.body) + len(body) < HANDED_ON_BYTES
        if few and not (self.cycle.response_complete or self._should_upgrade()):
            self.cycle.body += (
                body  # handed on with what follows, at the body's end or where the client leaves
            )
        else:
            super().on_body(body)
        if self._body > FREE_BODY_BYTES:
            cast(_PacedFlow, self.flow).hold(_pace.wait_s(len(body)))

    def on_message_complete(self) -> None:
        """The parser's: a body is whole."""
        if self._unread:
            return
        super().on_message_complete()
        self._in_message = False
        self._body = 0

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._stop()
        super().connection_lost(exc)

    def _awaits_head(self) -> bool:
        """Also while the rest of a body comes that was answered: it is read for the next head alone."""
        if self.transport.get_protocol() is not self:
            return False  # it is a WebSocket by now
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._deadline = asyncio.get_running_loop().call_later(HEAD_SECONDS, self._end)

    def _stop(self) -> None:
        self._arrived = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self) -> None:
        if not self.transport.is_closing() and self._awaits_head():
            self._refuse("408 Request Timeout")

    def _refuse(self, status: str) -> None:
        if self._arrived:
            self.transport.write(_REFUSAL.format(status).encode())
        self._stop()
        self.transport.close()


def install() -> None:
    """Let every uvicorn server of this process that chooses its protocol itself have the deadline."""
    auto.AutoHTTPProtocol = BoundedHttpProtocol
