"""Small web servers on loopback: one that gives pictures, and a canary that must never be reached."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from ssl import SSLContext
from typing import Any

from serve.fetch.fetcher import Address, ImageFetcher

PUBLIC, INSIDE = "127.0.0.1", "127.0.0.2"
"""Loopback addresses: one that stands for a public one, and one of a private network."""


class Web:
    """A server: what it answers by path, and the requests that it had.

    Attributes:
        routes: Path → (status, headers, body), or a function that writes the answer itself.
        seen: (path, headers) of each request, in order.
        connections: How many were opened.
    """

    def __init__(self, host: str, context: SSLContext | None = None) -> None:
        self.routes: dict[str, tuple[int, dict[str, str], bytes] | Callable[[Any], None]] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                web.connections += 1
                super().setup()

            def do_GET(self) -> None:
                web.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                route = web.routes.get(self.path, (404, {}, b""))
                if callable(route):
                    route(self)
                    return
                status, headers, body = route
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer((host, 0), Handler)
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port


@contextmanager
def serving(host: str, context: SSLContext | None = None) -> Iterator[Web]:
    """A server while it runs."""
    web = Web(host, context)
    thread = threading.Thread(target=web.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.server.shutdown()
        web.server.server_close()
        thread.join(5)


class Names:
    """A name server: the addresses of each name, one list after another where they change."""

    def __init__(self, **answers: list[str] | list[list[str]]) -> None:
        self._answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[Address]:
        self.asked.append(host)
        found: Any = self._answers.get(host, [PUBLIC])
        if found and isinstance(found[0], list):
            found = found[min(self.asked.count(host), len(found)) - 1]
        return [ip_address(one) for one in found]


def fetcher(hosts: list[str], names: Names | None = None, **options: Any) -> ImageFetcher:
    """A fetcher for which `PUBLIC` alone is a public address."""
    own = {"seconds": 5.0, "at_once": 4, "resolve": names or Names()} | options
    return ImageFetcher(hosts, admits=lambda address: str(address) == PUBLIC, **own)
