"""POST /v1/chat/completions, plain and streamed."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from casa_core.engine.requests import (
    GenerationDelta,
    GenerationRequest,
    GenerationResult,
    TokenLogprob,
)
from serve.api.errors import as_api_error, check_model, internal_error
from serve.api.json_body import JsonRoute
from serve.api.request_conversion import to_generation_requests
from serve.api.request_images import ImageSources, images_named
from serve.api.responses import ChatCompletion, event_stream
from serve.api.schemas import ChatCompletionRequest
from serve.api.settings import ServeSettings
from serve.calls import EngineCalls

logger = logging.getLogger("casa.serve")
T = TypeVar("T")
STREAMED = event_stream(
    "With `stream`: lines `data: {…}`, each a piece of the answer; the last is `data: [DONE]`."
)


def chat_router(client: EngineCalls, settings: ServeSettings, sources: ImageSources) -> APIRouter:
    """The chat route over one engine; ``sources`` are for images that are not in a call itself."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/chat/completions", responses={200: {"model": ChatCompletion, **STREAMED}})
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        """Answer a conversation about pictures, whole or as a stream of server-sent events."""
        check_model(body.model, settings.checkpoints)
        request_id = request.state.request_id
        asked = await to_generation_requests(body, settings, request_id, sources)
        fingerprint = settings.checkpoints[body.model].fingerprint
        answer = _Answer(id=f"chatcmpl-{request_id}", model=body.model, fingerprint=fingerprint)
        with images_named(body.messages):
            if not body.stream:
                return JSONResponse(await _complete(client, asked, answer))
            deltas = merged([client.stream(one) for one in asked])
            # The first piece is made before the headers go out, so that a refusal is a plain 4xx or 5xx.
            first = await anext(deltas, None)
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(
            _events(first, deltas, answer, len(asked), include_usage, request_id),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    return router


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What all objects of one answer share."""

    id: str
    model: str
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    def chunk(
        self,
        index: int,
        delta: dict[str, str],
        finish_reason: str | None = None,
        logprobs: Sequence[TokenLogprob] = (),
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs_of(logprobs) if logprobs else None,
            "finish_reason": finish_reason,
        }
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint or None,
        }


async def _complete(
    client: EngineCalls, asked: Sequence[GenerationRequest], answer: _Answer
) -> dict[str, Any]:
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(client.generate(one)) for one in asked]
    except BaseExceptionGroup as failed:  # the others were cancelled, as none is of use alone
        raise failed.exceptions[0] from failed
    results = [task.result() for task in running]
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": result.text, "refusal": None},
            "logprobs": None if one.sampling.logprobs is None else logprobs_of(result.logprobs),
            "finish_reason": result.finish_reason,
        }
        for index, (one, result) in enumerate(zip(asked, results, strict=True))
    ]
    return answer.completion(choices, usage(results))


async def merged(
    streams: Sequence[AsyncGenerator[GenerationDelta, None]],
) -> AsyncGenerator[tuple[int, GenerationDelta], None]:
    """The pieces of several answers as they come, each with its answer's number.

    Raises:
        Exception: The first error of any of them; all others end with it.
    """
    pieces: asyncio.Queue[tuple[int, GenerationDelta | None]] = asyncio.Queue()

    async def forward(index: int, stream: AsyncGenerator[GenerationDelta, None]) -> None:
        try:
            async with aclosing(stream):
                async for delta in stream:
                    pieces.put_nowait((index, delta))
        finally:
            pieces.put_nowait((index, None))

    running = [asyncio.create_task(forward(index, stream)) for index, stream in enumerate(streams)]
    try:
        for _ in streams:
            while (piece := await pieces.get())[1] is not None:
                yield piece[0], piece[1]
            await running[piece[0]]
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _events(
    first: tuple[int, GenerationDelta] | None,
    rest: AsyncGenerator[tuple[int, GenerationDelta], None],
    answer: _Answer,
    count: int,
    include_usage: bool,
    request_id: str,
) -> AsyncIterator[str]:
    """Server-sent events: role, words, finish reason, usage if asked for, [DONE]; or an error event."""
    last: dict[int, GenerationDelta] = {}
    async with aclosing(rest):
        try:
            for index in range(count):
                yield _event(answer.chunk(index, {"role": "assistant", "content": ""}))
            pieces = rest if first is None else _with_first(first, rest)
            async for index, delta in pieces:
                last[index] = delta
                if delta.text or delta.logprobs:
                    yield _event(answer.chunk(index, {"content": delta.text}, logprobs=delta.logprobs))
        except Exception as error:
            refusal = as_api_error(error)
            if refusal is None:
                logger.exception("request %s: the stream failed", request_id)
                refusal = internal_error(request_id)
            yield _event(refusal.body())
            return
        for index, delta in sorted(last.items()):
            yield _event(answer.chunk(index, {}, delta.finish_reason or "stop"))
        if include_usage and last:
            yield _event(answer.usage_chunk(usage(list(last.values()))))
        yield "data: [DONE]\n\n"


async def _with_first(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for one in rest:
        yield one


def logprobs_of(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """OpenAI's account of the tokens' log-probabilities."""
    content = [{**_token(one), "top_logprobs": [_token(other) for other in one.top]} for one in tokens]
    return {"content": content, "refusal": None}


def _token(one: TokenLogprob) -> dict[str, Any]:
    whole = "\ufffd" not in one.text
    return {"token": one.text, "logprob": one.logprob, "bytes": list(one.text.encode()) if whole else None}


def usage(answers: Sequence[GenerationResult] | Sequence[GenerationDelta]) -> dict[str, Any]:
    """OpenAI's token account of the answers to one prompt, which counts once.

    `prompt_tokens` counts text; image tokens never enter the text sequence here, so they stand apart in
    `prompt_tokens_details`.
    """
    done, completed = answers[0], sum(one.completion_tokens for one in answers)
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": completed,
        "total_tokens": done.prompt_tokens + completed,
        "prompt_tokens_details": {
            "text_tokens": done.prompt_tokens,
            "image_tokens": done.image_tokens,
            "cached_tokens": done.cached_tokens,
            "audio_tokens": 0,
        },
    }


def _event(payload: dict[str, Any]) -> str:
    return f"data: {json.dumps(payload, ensure_ascii=False, separators=(',', ':'))}\n\n"
