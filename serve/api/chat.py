"""POST /v1/chat/completions, plain and streamed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from casa_core.engine.requests import GenerationDelta, GenerationRequest, GenerationResult
from serve.api.engine_client import EngineClient
from serve.api.errors import as_api_error, internal_error, model_not_found
from serve.api.request_conversion import to_generation_request
from serve.api.schemas import ChatCompletionRequest
from serve.api.settings import ServeSettings

logger = logging.getLogger("casa.serve")


def chat_router(client: EngineClient, settings: ServeSettings) -> APIRouter:
    """The chat route over one engine."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        if body.model != settings.model_name:
            raise model_not_found(body.model, settings.model_name)
        request_id = request.state.request_id
        generation = await to_generation_request(body, settings, request_id)
        answer = _Answer(
            id=f"chatcmpl-{request_id}", model=settings.model_name, fingerprint=settings.checkpoint
        )
        if not body.stream:
            return JSONResponse(await _complete(client, generation, answer))
        deltas = client.stream(generation)
        # The first piece is made before the headers go out, so that a refusal is still a plain 4xx or 5xx.
        first = await anext(deltas, None)
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(
            _events(first, deltas, answer, include_usage, request_id),
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

    def completion(self, choice: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage}

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
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


async def _complete(client: EngineClient, generation: GenerationRequest, answer: _Answer) -> dict[str, Any]:
    result = await client.generate(generation)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": result.text, "refusal": None},
        "logprobs": None,
        "finish_reason": result.finish_reason,
    }
    return answer.completion(choice, usage(result))


async def _events(
    first: GenerationDelta | None,
    rest: AsyncGenerator[GenerationDelta, None],
    answer: _Answer,
    include_usage: bool,
    request_id: str,
) -> AsyncIterator[str]:
    """Server-sent events: role, words, finish reason, usage if asked for, [DONE]; or an error event."""
    async with aclosing(rest):
        last = first
        try:
            yield _event(answer.chunk({"role": "assistant", "content": ""}))
            if first is not None and first.text:
                yield _event(answer.chunk({"content": first.text}))
            async for delta in rest:
                last = delta
                if delta.text:
                    yield _event(answer.chunk({"content": delta.text}))
        except Exception as error:
            refusal = as_api_error(error)
            if refusal is None:
                logger.exception("request %s: the stream failed", request_id)
                refusal = internal_error(request_id)
            yield _event(refusal.body())
            return
        yield _event(answer.chunk({}, (last.finish_reason if last else None) or "stop"))
        if include_usage and last is not None:
            yield _event(answer.usage_chunk(usage(last)))
        yield "data: [DONE]\n\n"


def usage(done: GenerationResult | GenerationDelta) -> dict[str, Any]:
    """OpenAI's token account. `prompt_tokens` counts text; image tokens never enter the text sequence here,
    so they stand apart in `prompt_tokens_details`."""
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
        "prompt_tokens_details": {
            "text_tokens": done.prompt_tokens,
            "image_tokens": done.image_tokens,
            "cached_tokens": done.cached_tokens,
            "audio_tokens": 0,
        },
    }


def _event(payload: dict[str, Any]) -> str:
    return f"data: {json.dumps(payload, ensure_ascii=False, separators=(',', ':'))}\n\n"
