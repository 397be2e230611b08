"""HTTP middleware: a request id, a bound on the body, and unexpected exceptions as a 500."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from types import MappingProxyType

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.request_ids import HEADER, harmless_id
from serve.api.errors import ApiError, internal_error, too_many

logger = logging.getLogger("casa.serve")


class RequestMiddleware:
    """Give each request an id and turn unexpected exceptions into a logged 500.

    The id is the client's `x-request-id` where it has a harmless form, else a new one. It is in
    `scope["state"]`, in the response's headers and in the log line of a failure.

    Args:
        in_headers: Whether to write it into the response; a proxy in front may do that already.
    """

    def __init__(self, app: ASGIApp, in_headers: bool = True) -> None:
        self._app = app
        self._in_headers = in_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get(HEADER, "")
        request_id = harmless_id(offered)
        scope.setdefault("state", {})["request_id"] = request_id
        if scope["type"] == "websocket":  # a connection reports its failures itself
            await self._app(scope, receive, send)
            return
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if self._in_headers:
                    MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            if started:
                raise  # half an answer is sent: only a broken connection can signal the failure
            await internal_error(request_id).response()(scope, receive, send_with_id)


class BodyLimitMiddleware:
    """Refuse a body over `limit` bytes with 413, by its declared length or, without one, while it arrives;
    with 408 one that is not whole after `seconds`; with 415 one that is compressed; and with 429 one for
    which there is no room.

    Args:
        together: Bytes that the bodies of all requests in progress may have.
        own: Limit and seconds of paths that have others; their bodies are not kept in memory.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        seconds: float,
        together: int,
        own: Mapping[str, tuple[int, float]] = MappingProxyType({}),
    ) -> None:
        self._app = app
        self._bounds = limit, seconds
        self._together = together
        self._held = 0
        self._own = own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit, seconds = self._own.get(scope["path"], self._bounds)
        headers = Headers(scope=scope)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            await _compressed(encoding).response()(scope, receive, send)
            return
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            await _too_large(limit).response()(scope, receive, send)
            return
        received, whole, in_memory = 0, False, scope["path"] not in self._own
        end = time.monotonic() + seconds

        async def receive_counted() -> Message:
            nonlocal received, whole
            if whole:  # what comes after the body is the client's leaving, at any time
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), end - time.monotonic())
            except TimeoutError:
                raise _too_slow(seconds) from None
            whole = not message.get("more_body", False)
            received += (more := len(message.get("body", b"")))
            if in_memory:
                self._hold(more)
            if received > limit:
                raise _too_large(limit)
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._held -= received if in_memory else 0

    def _hold(self, more: int) -> None:
        """Count bytes that are kept until their request is answered."""
        self._held += more
        if self._held > self._together:
            message = f"The requests in progress hold {self._together} bytes, the most this server keeps."
            refusal = too_many(message, "overloaded")
            refusal.headers = {**(refusal.headers or {}), "connection": "close"}
            raise refusal


def _too_slow(seconds: float) -> ApiError:
    return ApiError(
        408,
        f"The request body was not whole after {seconds:g} seconds. Send it again.",
        code="request_timeout",
        headers={"connection": "close"},
    )


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is larger than {limit} bytes. Send fewer or smaller images, or a shorter video.",
        code="request_too_large",
        headers={"connection": "close"},  # or the server would go on reading what it has refused
    )


def _compressed(encoding: str) -> ApiError:
    return ApiError(
        415,
        f"The header content-encoding is {encoding[:40]!r}. Bodies are not unpacked here: send it plain.",
        code="unsupported_encoding",
        headers={"connection": "close"},
    )
