"""Request ids that clients offer: kept where harmless, replaced elsewhere, in an app and in Ray's proxy.

Ray Serve's HTTP proxy writes a client's `x-request-id` into its answer and its log as it came. A middleware
around it replaces what no log or header should hold; the proxy finds it by the name in `ENVIRONMENT`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.middleware import Middleware

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "infra.request_ids:proxy_middlewares"}
"""For the processes of a Ray head that serves."""
HEADER = "x-request-id"
_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,64}")

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


def harmless_id(offered: str) -> str:
    """The id that a client offers, if it is short and plain, else a new one."""
    return offered if _HARMLESS.fullmatch(offered) else f"req-{uuid.uuid4().hex}"


class HarmlessIdMiddleware:
    """Gives each request exactly one `x-request-id`, a harmless one."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            name = HEADER.encode()
            offered = [value for header, value in scope["headers"] if header.lower() == name]
            own = harmless_id(offered[0].decode("latin-1") if len(offered) == 1 else "")
            others = [header for header in scope["headers"] if header[0].lower() != name]
            scope["headers"] = [*others, (name, own.encode())]
        await self._app(scope, receive, send)


def proxy_middlewares() -> list[Middleware]:
    """What Ray Serve's proxy is to wrap itself in; called in its process before it listens, it sets the
    deadline for heads, too."""
    from starlette.middleware import Middleware

    from infra import http_protocol

    http_protocol.install()
    return [Middleware(HarmlessIdMiddleware)]
