"""Clients of a soak: viewers that check what they are told, those that leave or do not read, and askers.

Every viewer shows pictures of its own, drawn from its number, so that words about another's are noticed.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image, ImageDraw
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

COLOURS = ("red", "green", "blue", "yellow", "gray", "teal", "brown", "black")
QUERY = "describe what you see live"
QUESTION = "what shape is in the image?"
SIDE = 64


def pictures(seed: int, side: int = SIDE) -> Iterator[bytes]:
    """JPEGs of one shape each, another order for every seed; each shape stays for a few pictures."""
    draw = random.Random(seed)
    while True:
        image = Image.new("RGB", (side, side), "white")
        low, high = draw.randint(2, side // 3), draw.randint(side // 2, side - 2)
        shape = draw.choice(("rectangle", "ellipse"))
        getattr(ImageDraw.Draw(image), shape)((low, low, high, high), fill=draw.choice(COLOURS))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90)
        for _ in range(draw.randint(1, 3)):
            yield out.getvalue()


@dataclass(slots=True)
class Caption:
    """What came of one picture: its text, and when it was shown and captioned (``time.monotonic``)."""

    shown: float
    came: float = 0.0
    text: str = ""
    late_ms: float = 0.0
    fate: str = "waiting"


@dataclass(slots=True)
class Viewer:
    """One live session: every picture's fate, and what else was told."""

    number: int
    captions: list[Caption] = field(default_factory=list)
    moves: list[tuple[float, bool, int]] = field(default_factory=list)  # when, exact, pictures shown by then
    errors: list[str] = field(default_factory=list)
    ended: dict[str, Any] | None = None

    async def watch(self, url: str, fps: float, until: float) -> None:
        """Show pictures at their times until then, and end the session."""
        try:
            async with connect(live(url), max_size=None) as socket:
                await start(socket)
                await asyncio.gather(self._show(socket, fps, until), self._hear(socket))
        except (ConnectionClosed, OSError, TimeoutError) as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    async def _show(self, socket: ClientConnection, fps: float, until: float) -> None:
        begin = time.monotonic() + self.number / 32 / fps  # each at its own phase
        for number, picture in enumerate(pictures(self.number)):
            if (due := begin + number / fps) > until:
                break
            await asyncio.sleep(max(due - time.monotonic(), 0))
            self.captions.append(Caption(time.monotonic()))
            await socket.send(frame(number / fps, picture))
        await socket.send(json.dumps({"type": "session.end"}))

    async def _hear(self, socket: ClientConnection) -> None:
        waiting = 0  # captions come in the order of their pictures
        async for message in socket:
            event = json.loads(message)
            match event["type"]:
                case "caption" | "dropped":
                    self._note(waiting, event)
                    waiting += 1
                case "session.moved":
                    self.moves.append((time.monotonic(), event["exact"], waiting))
                case "session.ended":
                    self.ended = event
                case "error":
                    self.errors.append(json.dumps(event["error"]))

    def _note(self, number: int, event: dict[str, Any]) -> None:
        caption = self.captions[number]
        caption.came, caption.fate = time.monotonic(), event["type"]
        if event["type"] == "caption":
            caption.text, caption.late_ms = event["text"], event["late_ms"]


async def leave_without_a_word(url: str, number: int, at: float) -> None:
    """Open a session, show three pictures, and drop the connection."""
    await asyncio.sleep(max(at - time.monotonic(), 0))
    async with connect(live(url)) as socket:
        await start(socket)
        for second, picture in zip(range(3), pictures(1000 + number), strict=False):
            await socket.send(frame(second, picture))
        await asyncio.sleep(0.5)
        socket.transport.abort()


async def never_read(url: str, number: int, fps: float, until: float) -> None:
    """Show pictures and read nothing, until the server ends it."""
    try:
        async with connect(live(url), max_queue=1, close_timeout=1) as socket:
            await start(socket)
            for second, picture in enumerate(pictures(2000 + number)):
                if time.monotonic() > until:
                    return
                await socket.send(frame(second / fps, picture))
                await asyncio.sleep(1 / fps)
    except ConnectionClosed:
        return


@dataclass(slots=True)
class Asker:
    """Questions about pictures of its own, one after the other, plain and streamed in turns."""

    number: int
    model: str
    answers: list[tuple[int, float, float, str]] = field(default_factory=list)  # picture, when, seconds, text
    failures: list[str] = field(default_factory=list)

    def question(self, picture: bytes) -> dict[str, Any]:
        """The body of a call about a picture."""
        address = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
        parts = [
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "text", "text": QUESTION},
        ]
        messages = [{"role": "user", "content": parts}]
        return {"model": self.model, "messages": messages, "max_tokens": 8}

    async def ask(self, url: str, until: float, pause_s: float) -> None:
        """Ask until then."""
        async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
            for number, picture in enumerate(pictures(3000 + self.number)):
                if time.monotonic() > until:
                    return
                begun = time.monotonic()
                body = {**self.question(picture), "stream": number % 2 == 1}
                answer = await client.post(f"{url}/v1/chat/completions", json=body)
                if answer.status_code != 200 or (body["stream"] and "[DONE]" not in answer.text):
                    self.failures.append(f"{answer.status_code} {answer.text[:200]}")
                else:
                    text = streamed(answer.text) if body["stream"] else plain(answer.json())
                    self.answers.append((number, begun, time.monotonic() - begun, text))
                await asyncio.sleep(pause_s)


def plain(answer: dict[str, Any]) -> str:
    """The text of a plain answer."""
    return answer["choices"][0]["message"]["content"]


def streamed(body: str) -> str:
    """The text of a streamed answer."""
    events = [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def live(url: str) -> str:
    """The address of live sessions."""
    return f"{url.replace('http', 'ws', 1)}/v1/live"


def frame(timestamp: float, picture: bytes) -> bytes:
    """A picture as a binary message."""
    return struct.pack("<d", timestamp) + picture


async def start(socket: ClientConnection) -> None:
    """Open the session.

    Raises:
        TimeoutError: It was refused, or not opened in time.
    """
    await socket.send(json.dumps({"type": "session.start", "query": QUERY}))
    event = json.loads(await asyncio.wait_for(socket.recv(), 60))
    if event["type"] != "session.started":
        raise TimeoutError(f"not started: {event}")
