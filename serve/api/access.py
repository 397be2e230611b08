"""ASGI middleware that admits clients: by host name and origin, then by API key.

Health checks need neither, and the live page and the documentation no key: they hold nothing but text.
"""

from __future__ import annotations

import logging

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from infra.endpoint_settings import Access
from serve.access.keys import KeyRing
from serve.access.refused import Refused
from serve.access.sites import Sites
from serve.api.errors import INVALID_REQUEST, ApiError, error_event

logger = logging.getLogger("casa.serve")
HEALTH = ("/healthz", "/readyz")
OPEN = (*HEALTH, "/", "/docs", "/openapi.json", "/favicon.ico")
"""Paths that need no key; neither do the page's own files."""
OPEN_FOLDER = "/web/"
COUNTED = ("/v1/chat/completions", "/v1/files", "/v1/streaming/sessions", "/v1/captions", "/v1/live")
"""What starts work, and counts as a call of its key."""
PROTOCOL = "casa.live"
KEY_PROTOCOL = "casa.key."
"""Prefix of the subprotocol that carries a WebSocket's key: browsers can set no header on one."""
CLOSE_POLICY, CLOSE_TRY_LATER = 1008, 1013


class SiteMiddleware:
    """Refuse requests to other host names and of foreign web pages; answer the preflights of listed ones."""

    def __init__(self, app: ASGIApp, access: Access, loopback_only: bool) -> None:
        self._app = app
        self._sites = Sites(access.hosts, access.origins, loopback_only=loopback_only)
        self._cors = CORSMiddleware(
            app,
            allow_origins=["*"],  # those that are not listed do not come here
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in HEALTH:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        hosts, origin = headers.getlist("host"), headers.get("origin")
        host = hosts[0] if len(hosts) == 1 else ""  # of several, a proxy may have believed another
        try:
            self._sites.check_host(host)
            foreign = origin is not None and self._sites.check_origin(origin, host)
        except Refused as refused:
            await _refuse(refused, scope, receive, send)
            return
        await (self._cors if foreign else self._app)(scope, receive, send)


class KeyMiddleware:
    """Refuse requests without a known API key, and those beyond their key's share.

    The key's name is in `scope["state"]["key"]`, and how many live sessions it may have in `"key_sessions"`;
    the key itself goes no further.

    Args:
        ring: The keys; without any, every request is admitted.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing | None) -> None:
        self._app, self._ring = app, ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        offered = _bearer(scope)
        if scope["type"] == "websocket":
            in_protocol = _socket_key(scope)
            offered = offered or in_protocol
            send = _naming_protocol(scope, send)
        if self._ring is not None and not is_open(scope["path"]):
            try:
                _admit(self._ring, offered, scope)
            except Refused as refused:
                await _refuse(refused, scope, receive, send)
                return
        await self._app(scope, receive, send)


def _admit(ring: KeyRing, offered: str | None, scope: Scope) -> None:
    """Check a key and count the call; whose it is, and the sessions it may have, go into the state."""
    key = ring.owner(offered)
    scope.setdefault("state", {}).update(key=key.name, key_sessions=key.live_sessions)
    if scope["path"] in COUNTED and scope.get("method", "POST") == "POST":
        ring.count_request(key)


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN or path.startswith(OPEN_FOLDER)


def _bearer(scope: Scope) -> str | None:
    scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _socket_key(scope: Scope) -> str | None:
    """The key among the subprotocols that are offered, which is taken from them."""
    offered: list[str] = scope.get("subprotocols", [])
    scope["subprotocols"] = [name for name in offered if not name.startswith(KEY_PROTOCOL)]
    return next((n.removeprefix(KEY_PROTOCOL) for n in offered if n.startswith(KEY_PROTOCOL)), None)


def _naming_protocol(scope: Scope, send: Send) -> Send:
    """Name our subprotocol to a client that offers it: browsers end a connection whose server names none."""

    async def send_with_protocol(message: Message) -> None:
        if message["type"] == "websocket.accept" and PROTOCOL in scope.get("subprotocols", ()):
            message = {**message, "subprotocol": message.get("subprotocol") or PROTOCOL}
        await send(message)

    return send_with_protocol


async def _refuse(refused: Refused, scope: Scope, receive: Receive, send: Send) -> None:
    kind = "rate_limit_error" if refused.status == 429 else INVALID_REQUEST
    error = ApiError(refused.status, refused.message, code=refused.code, kind=kind, headers=refused.headers)
    if scope["type"] == "http":
        await error.response()(scope, receive, send)
        return
    socket = WebSocket(scope, receive, send)
    try:
        await socket.accept()  # or the client would see no reason
        await socket.send_json(error_event(error, fatal=True))
        await socket.close(CLOSE_TRY_LATER if refused.status == 429 else CLOSE_POLICY)
    except (WebSocketDisconnect, RuntimeError):
        logger.debug("a client left before its refusal")
