"""ASGI middleware that counts every request and connection, and logs each when it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.observe.metrics import Metrics
from serve.observe.record import RequestRecord, begin_request

logger = logging.getLogger("casa.serve.access")

CLIENT_LEFT = 499
"""Status of a request whose client left before its answer began; nginx's."""
LEFT_SILENTLY = 1006
"""Close code of a connection that ended without one; the WebSocket protocol's."""
UNKNOWN_ROUTE = "other"
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Routes that monitors ask every few seconds; they are counted, and logged when they fail."""


class ObserveMiddleware:
    """Counts and logs. The outermost middleware, so that it sees what the others answer.

    Args:
        known: Says whether a path is a route's own, for requests that are refused before they are routed.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, known: Callable[[str], bool]) -> None:
        self._app, self._metrics, self._known = app, metrics, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        record = begin_request(scope.setdefault("state", {}))
        ending = _Ending(receive, send)
        is_socket = scope["type"] == "websocket"
        if is_socket:
            self._metrics.connections.inc()
        try:
            await self._app(scope, ending.receive, ending.send)
        finally:
            if is_socket:
                self._metrics.connections.dec()
            status = ending.status or (LEFT_SILENTLY if is_socket else CLIENT_LEFT)
            self._end(scope, record, status)

    def _end(self, scope: Scope, record: RequestRecord, status: int) -> None:
        metrics, seconds = self._metrics, time.monotonic() - record.started
        route = self._route(scope)
        method = scope.get("method", "WEBSOCKET")
        if scope["type"] == "http":
            metrics.requests.labels(route, str(status)).inc()
            metrics.request_seconds.labels(route).observe(seconds)
        for code, count in record.codes.items():
            metrics.refusals.labels(code).inc(count)
        if route in QUIET and status < 400:
            return
        fields = {
            "request_id": record.id,
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            "prompt_tokens": record.prompt_tokens,
            "image_tokens": record.image_tokens,
            "tokens": record.tokens,
            "code": " ".join(sorted(record.codes)),
            "key": record.key,
        }
        logger.info(
            "%(request_id)s %(method)s %(route)s %(status)d, %(seconds)s s, %(tokens)d tokens",
            fields,
            extra={"fields": {name: value for name, value in fields.items() if value != ""}},
        )

    def _route(self, scope: Scope) -> str:
        """The route's template: a path as the client wrote it would make a time series of every path."""
        if (route := getattr(scope.get("route"), "path", None)) is not None:
            return route
        return scope["path"] if self._known(scope["path"]) else UNKNOWN_ROUTE


class _Ending:
    """Watches a connection for its status: HTTP's, or the code that closed a WebSocket."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.status = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self.status = self.status or message.get("code", 0)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "websocket.close":
            self.status = message.get("code", 1000)
        await self._send(message)
