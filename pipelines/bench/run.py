"""Send planned load to an endpoint over HTTP and WebSockets, and observe what becomes of it.

Nothing waits for an earlier answer: each call is sent at its planned time, and its latency counts from then.
A load generator that waited would send less when the endpoint is slow, and so leave out of its figures just
the time that users wait ("coordinated omission").
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from infra.endpoint_client import authorization
from pipelines.bench.observed import AskedAnswer, Frame, LiveView, Observed
from pipelines.bench.plan import Load, chat_body, draw_pictures

START_S = 0.1
"""Seconds from the beginning of the run to the time that plans count from."""


def observe(url: str, model: str, load: Load, progress: Callable[[Observed], None]) -> Observed:
    """Run the load.

    Args:
        progress: Called about twice a second with what there is.
    """
    return asyncio.run(_Run(url, model, load).observe(progress))


class _Run:
    def __init__(self, url: str, model: str, load: Load) -> None:
        self._url, self._model, self._load = url, model, load
        self._pictures = draw_pictures(load.seed)

    async def observe(self, progress: Callable[[Observed], None]) -> Observed:
        load = self._load
        began = time.monotonic() + START_S
        seen = Observed(began, load.seconds)
        seen.answers = [AskedAnswer(began + at) for at in load.answers_at]
        seen.sessions = [LiveView(began + at) for at in load.sessions_at]
        bounds = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        timeout = httpx.Timeout(load.seconds + load.drain)
        async with httpx.AsyncClient(limits=bounds, timeout=timeout, trust_env=False) as client:
            bodies = [
                chat_body(self._model, self._picture(number), number, load.tokens)
                for number in range(len(seen.answers))
            ]
            tasks = [
                asyncio.create_task(_at(answer.planned, self._ask, client, answer, body))
                for answer, body in zip(seen.answers, bodies, strict=True)
            ]
            tasks += [asyncio.create_task(_at(view.planned, self._watch, view)) for view in seen.sessions]
            await self._until_done(tasks, seen, progress)
        seen.ended = time.monotonic()
        return seen

    async def _until_done(
        self, tasks: list[asyncio.Task[None]], seen: Observed, progress: Callable[[Observed], None]
    ) -> None:
        """Until all is done, or the time to drain is over: what is open then stays ``waiting``."""
        load = self._load
        longest = load.seconds + (load.stream_seconds if seen.sessions else 0.0)
        end = seen.began + longest + load.drain
        open_tasks = set(tasks)
        while open_tasks and (left := end - time.monotonic()) > 0:
            done, open_tasks = await asyncio.wait(open_tasks, timeout=min(0.5, left))
            for task in done:
                task.result()
            progress(seen)
        for task in open_tasks:
            task.cancel()
        await asyncio.gather(*open_tasks, return_exceptions=True)

    async def _ask(self, client: httpx.AsyncClient, answer: AskedAnswer, body: dict[str, Any]) -> None:
        answer.sent = time.monotonic()
        address = f"{self._url}/v1/chat/completions"
        try:
            async with client.stream("POST", address, json=body, headers=authorization()) as response:
                if response.status_code != 200:
                    answer.fate = _code(await response.aread(), f"http {response.status_code}")
                    return
                answer.fate = "failed"  # unless it comes to its end
                await _read(response.aiter_bytes(), answer)
        except (httpx.HTTPError, ValueError):
            answer.fate = "failed"

    async def _watch(self, view: LiveView) -> None:
        address = f"{self._url.replace('http', 'ws', 1)}/v1/live"
        headers = authorization()
        try:
            async with connect(address, additional_headers=headers, proxy=None, max_size=None) as socket:
                await socket.send(json.dumps({"type": "session.start", "model": self._model}))
                started = json.loads(await socket.recv())
                if started["type"] != "session.started":
                    view.fate = started.get("error", {}).get("code") or "failed"
                    return
                await self._session(socket, view)
        except (OSError, TimeoutError, WebSocketException, ValueError, KeyError):
            view.fate = "failed"

    async def _session(self, socket: ClientConnection, view: LiveView) -> None:
        load = self._load
        reading = asyncio.create_task(_events(socket, view, load.fps))
        try:
            for number in range(max(round(load.stream_seconds * load.fps), 1)):
                planned = view.planned + number / load.fps
                await asyncio.sleep(planned - time.monotonic())
                view.frames.append(Frame(planned, planned + load.deadline))
                picture = self._picture(number + int(view.planned * 1000))
                await socket.send(struct.pack("<d", number / load.fps) + picture)
            await socket.send(json.dumps({"type": "session.end"}))
            view.fate = await reading
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, WebSocketException):
                await reading

    def _picture(self, number: int) -> bytes:
        return self._pictures[number % len(self._pictures)]


async def _at(planned: float, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    await asyncio.sleep(planned - time.monotonic())
    await work(*arguments)


async def _read(chunks: AsyncIterator[bytes], answer: AskedAnswer) -> None:
    """Read a streamed answer: when its words come, and the endpoint's own count of its tokens."""
    held = b""
    async for chunk in chunks:
        *lines, held = (held + chunk).split(b"\n")
        now = time.monotonic()
        for line in lines:
            payload = line.removeprefix(b"data: ")
            if payload == b"[DONE]":
                answer.ended, answer.fate = now, "answered"
                answer.first = min(answer.first, now)
            elif payload.strip():
                _note(json.loads(payload), answer, now)


def _note(event: dict[str, Any], answer: AskedAnswer, now: float) -> None:
    if "error" in event:
        answer.fate = event["error"].get("code") or "failed"
        return
    if any(choice["delta"].get("content") for choice in event["choices"]):
        answer.first = min(answer.first, now)
    if usage := event.get("usage"):
        answer.tokens = usage["completion_tokens"]


async def _events(socket: ClientConnection, view: LiveView, fps: float) -> str:
    """Note what becomes of the frames; how the session ended."""
    async for text in socket:
        event, now = json.loads(text), time.monotonic()
        if event["type"] == "session.ended":
            return "answered"
        if event["type"] == "error" and event.get("fatal"):
            return event["error"]["code"] or "failed"
        if event.get("timestamp") is None:
            continue
        frame = view.frames[round(event["timestamp"] * fps)]
        match event["type"]:
            case "caption":
                frame.ended, frame.fate, frame.tokens = now, "answered", event["tokens"]
            case "dropped":
                frame.fate = "dropped"
            case "error":
                frame.fate = "refused"
    return "failed"


def _code(body: bytes, otherwise: str) -> str:
    try:
        return json.loads(body)["error"]["code"] or otherwise
    except (ValueError, KeyError, TypeError):
        return otherwise
