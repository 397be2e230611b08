"""Request ids of clients, before Ray's proxy sees them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from infra.request_ids import ENVIRONMENT, HarmlessIdMiddleware, harmless_id, proxy_middlewares


def ids_after(*offered: bytes) -> list[bytes]:
    """What an app behind the middleware is given."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])

    headers = [(b"host", b"a"), *((b"X-Request-Id", one) for one in offered)]
    asyncio.run(HarmlessIdMiddleware(app)({"type": "http", "headers": headers}, None, None))
    assert (b"host", b"a") in seen
    return [value for name, value in seen if name.lower() == b"x-request-id"]


def test_a_harmless_id_is_kept():
    assert ids_after(b"abc-1.2_3") == [b"abc-1.2_3"]
    assert harmless_id("x" * 64) == "x" * 64


@pytest.mark.parametrize("offered", [(), (b"",), (b"x" * 65,), (b"a b",), (b"\xff",), (b"a", b"b")])
def test_every_other_is_replaced_by_one_that_is(offered: tuple[bytes, ...]):
    [given] = ids_after(*offered)
    assert given.startswith(b"req-")
    assert harmless_id(given.decode()) == given.decode()


def test_the_name_that_ray_is_given_leads_to_it():
    [path] = ENVIRONMENT.values()
    assert path == f"{proxy_middlewares.__module__}:{proxy_middlewares.__name__}"
    assert [one.cls for one in proxy_middlewares()] == [HarmlessIdMiddleware]
