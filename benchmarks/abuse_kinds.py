"""The abuses of :mod:`benchmarks.serve_abuse`: each holds on until told to stop, and counts what it got."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image

CHUNK = b"x" * (1 << 16)
GIB = 1 << 30
PAUSE_S = 0.5
"""Between two requests of one abuser."""
DIALS = 64
"""Connections that are opened at a time: more would overrun the listener's backlog."""


@dataclass(frozen=True, slots=True)
class Target:
    """The endpoint: address, served model, and headers of a known client."""

    url: str
    host: str
    port: int
    model: str
    headers: dict[str, str]

    def chat(self, text: str, pictures: list[bytes], **more: Any) -> dict[str, Any]:
        """The body of a chat call about PNG pictures."""
        urls = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in pictures]
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content = [*parts, {"type": "text", "text": text}]
        return {"model": self.model, "messages": [{"role": "user", "content": content}], **more}

    def head(self, length: int | str) -> bytes:
        """The head of a chat call; a length that is a text is a transfer coding."""
        body = f"content-length: {length}" if isinstance(length, int) else f"transfer-encoding: {length}"
        own = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n{own}"
            f"connection: close\r\ncontent-type: application/json\r\n{body}\r\n\r\n"
        ).encode()


Run = Callable[[Target, int, asyncio.Event], Coroutine[Any, Any, Counter[str]]]


@dataclass(frozen=True, slots=True)
class Kind:
    """An abuse, and its full number of connections or requests."""

    count: int
    run: Run


@cache
def small_picture() -> bytes:
    """A PNG of one colour, 64 x 64."""
    return _png(64, 64)


def _png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


def holding(start: bytes | Callable[[Target], bytes], drip: bytes = b"") -> Run:
    """Connections that send a start and then nothing, or one more piece every second."""

    async def run(target: Target, count: int, stop: asyncio.Event) -> Counter[str]:
        got: Counter[str] = Counter()
        dialling = asyncio.Semaphore(DIALS)
        first = start if isinstance(start, bytes) else start(target)

        async def hold() -> None:
            try:
                async with dialling:
                    if stop.is_set():
                        return
                    reader, writer = await asyncio.open_connection(target.host, target.port)
            except OSError:
                got["refused"] += 1
                return
            answer = asyncio.create_task(reader.read(1024))
            with suppress(OSError):
                writer.write(first)
                while not (stop.is_set() or answer.done()):
                    await asyncio.sleep(1.0)
                    writer.write(drip)
            got[_status(answer) if answer.done() else "held"] += 1
            answer.cancel()
            writer.close()

        await asyncio.gather(*(hold() for _ in range(count)))
        return got

    return run


def _status(answer: asyncio.Task[bytes]) -> str:
    """What a server's first bytes say: an HTTP status, or that it just closed."""
    try:
        data = answer.result()
    except OSError:
        return "closed"
    return data.split()[1].decode() if data.startswith(b"HTTP/") else "closed"


def sending(body: Callable[[Target], bytes]) -> Run:
    """Requests of one body: as many clients as the count says send one after the other until the end."""

    async def run(target: Target, count: int, stop: asyncio.Event) -> Counter[str]:
        got: Counter[str] = Counter()
        data = await asyncio.to_thread(body, target)
        request = target.head(len(data)) + data

        async def send() -> None:
            while not stop.is_set():
                got[await exchange(target, request)] += 1
                await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*(send() for _ in range(count)))
        return got

    return run


async def exchange(target: Target, request: bytes) -> str:
    """Send a whole request over a new connection; what came back, as :func:`holding` counts it."""
    try:
        reader, writer = await asyncio.open_connection(target.host, target.port)
    except OSError:
        return "refused"
    answer = asyncio.create_task(reader.read(1024))
    with suppress(OSError):
        writer.write(request)
        await asyncio.wait({answer}, timeout=120)
    status = _status(answer) if answer.done() else "no answer"
    answer.cancel()
    writer.close()
    return status


def pouring(head: Callable[[Target], bytes], piece: bytes) -> Run:
    """Connections that pour a gigabyte each, until they are refused."""

    async def run(target: Target, count: int, stop: asyncio.Event) -> Counter[str]:
        got: Counter[str] = Counter()

        async def pour() -> None:
            reader, writer = await asyncio.open_connection(target.host, target.port)
            answer = asyncio.create_task(reader.read(1024))
            sent = 0
            with suppress(OSError):
                writer.write(head(target))
                while sent < GIB and not (stop.is_set() or answer.done()):
                    writer.write(piece)
                    sent += len(piece)
                    await writer.drain()
                await asyncio.wait({answer}, timeout=5)
            got[_status(answer) if answer.done() else "no answer"] += 1
            got["MB sent"] += sent >> 20
            answer.cancel()
            writer.close()

        while not stop.is_set():
            await asyncio.gather(*(pour() for _ in range(count)), return_exceptions=True)
            await asyncio.sleep(0.2)
        return got

    return run


def _json(target: Target, text: str) -> bytes:
    return json.dumps(target.chat(text, [])).encode()


def _deep(target: Target) -> bytes:
    return _json(target, "x")[:-1] + b', "metadata": ' + b"[" * 5000 + b"]" * 5000 + b"}"


def _parts(target: Target) -> bytes:
    body = target.chat("x", [])
    body["messages"][0]["content"] = [{"type": "text", "text": "a"}] * 500_000
    return json.dumps(body).encode()


def _pictures(target: Target) -> bytes:
    return json.dumps(target.chat("what is it?", [_png(8000, 5000)] * 16)).encode()


def _upgrade(target: Target) -> bytes:
    own = "".join(f"{name}: {value}\r\n" for name, value in target.headers.items())
    return (
        f"GET /v1/live HTTP/1.1\r\nhost: {target.host}:{target.port}\r\n{own}upgrade: websocket\r\n"
        "connection: Upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "sec-websocket-version: 13\r\n\r\n"
    ).encode()


KINDS = {
    "half-open": Kind(10_000, holding(b"")),
    "half a head": Kind(1000, holding(b"POST /v1/chat/completions HTTP/1.1\r\nhost: ", b"a")),
    "half a body": Kind(300, holding(lambda target: target.head(1000) + b'{"mod')),
    "dripping bodies": Kind(300, holding(lambda target: target.head(1000) + b'{"mod', b"e")),
    "silent WebSockets": Kind(200, holding(_upgrade)),
    "1 GB declared": Kind(16, pouring(lambda target: target.head(GIB), CHUNK)),
    "1 GB in chunks": Kind(
        16, pouring(lambda target: target.head("chunked"), b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
    ),
    "19 MB of text": Kind(4, sending(lambda target: _json(target, "word " * 3_800_000))),
    "500,000 parts": Kind(4, sending(_parts)),
    "5,000-deep JSON": Kind(16, sending(_deep)),
    "16 x 40 megapixels": Kind(2, sending(_pictures)),
}
