"""A deadline for the heads of HTTP requests: uvicorn, in our server and in Ray's proxy, has none.

A client that connects and says nothing, or half a head, would hold its connection as long as it likes.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 15.0
HEAD_BYTES = 64 * 1024
_REFUSAL = "HTTP/1.1 {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class HeadDeadlineProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which closes a connection whose request's head is not whole in time (408), or
    larger than `HEAD_BYTES` (431)."""

    _deadline: asyncio.TimerHandle | None = None
    _arrived = 0
    _in_message = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Look whether the head is whole by now; the next one is waited for from its first byte on."""
        super().data_received(data)
        if self.transport.is_closing() or not self._awaits_head():
            self._stop()
            return
        if not self._in_message:
            self._arrived += len(data)
        if self._arrived > HEAD_BYTES:
            self._refuse("431 Request Header Fields Too Large")
        elif self._deadline is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """The parser's: a head is whole."""
        super().on_headers_complete()
        self._in_message = True

    def on_message_complete(self) -> None:
        """The parser's: a body is whole."""
        super().on_message_complete()
        self._in_message = False

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
    auto.AutoHTTPProtocol = HeadDeadlineProtocol
