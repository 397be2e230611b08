"""Answers of engines that die: asked for again, and no word comes twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.handle import DeploymentHandle

from casa_core.engine.events import Failed
from casa_core.engine.requests import (
    GenerationDelta,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
    TokenLogprob,
)
from casa_core.errors import DataError
from casa_core.types import Sample
from serve.engines import ATTEMPTS, Engines

WORDS = ["red", " what", " is", " this"]


def request(**sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        sample=Sample(source="test", sample_id="1", parts=()), sampling=SamplingParams(**sampling)
    )


class Handle:
    """An engine's handle of which each call dies after as many pieces as it is told; `None`: never."""

    def __init__(self, *pieces: int | None) -> None:
        self._pieces = list(pieces)
        self.asked: list[GenerationRequest] = []

    def options(self, **_: Any) -> Handle:
        return self

    @property
    def stream(self) -> Any:
        return _Remote(self._stream)

    @property
    def generate(self) -> Any:
        return _Remote(self._generate)

    async def _stream(self, asked: GenerationRequest) -> AsyncIterator[list[GenerationDelta]]:
        self.asked.append(asked)
        alive, words = self._pieces.pop(0), list(WORDS)
        if not self._pieces:  # the text comes in other pieces the next time
            words = [words[0] + words[1], words[2] + words[3]]
        for number, word in enumerate(words):
            if number == alive:
                raise ActorDiedError()
            last = number == len(words) - 1
            tokens = tuple(TokenLogprob(0, -1.0, one) for one in word.split())
            reason = "stop" if last else None
            yield [GenerationDelta(text=word, finish_reason=reason, logprobs=tokens)]

    async def _generate(self, asked: GenerationRequest) -> GenerationResult | Failed:
        self.asked.append(asked)
        if self._pieces.pop(0) is not None:
            raise ActorDiedError()
        if asked.request_id == "long":
            return Failed(DataError("too long", "9000 tokens", "shorten it"))
        return GenerationResult(request_id="1", text="red", token_ids=(1,), finish_reason="stop")


class _Remote:
    def __init__(self, call: Any) -> None:
        self.remote = call


def engines(handle: Handle) -> Engines:
    return Engines(cast(DeploymentHandle, handle))


async def streamed(handle: Handle, asked: GenerationRequest) -> list[GenerationDelta]:
    return [delta async for delta in engines(handle).stream(asked)]


@pytest.mark.parametrize("alive", range(4))
def test_a_streamed_answer_goes_on_where_it_was_cut(alive: int):
    pieces = asyncio.run(streamed(Handle(alive, None), request()))
    assert "".join(piece.text for piece in pieces) == "red what is this"
    assert [piece.finish_reason for piece in pieces].count("stop") == 1
    tokens = [token.text for piece in pieces for token in piece.logprobs]
    assert tokens == ["red", "what", "is", "this"], "each with its log-probability, once"


def test_an_answer_that_is_drawn_has_the_same_seed_when_it_is_asked_for_again():
    handle = Handle(1, 1, None)
    asyncio.run(streamed(handle, request(temperature=1.0)))
    seeds = {asked.sampling.seed for asked in handle.asked}
    assert len(handle.asked) == 3
    assert len(seeds) == 1
    assert None not in seeds


def test_what_is_wrong_with_a_request_is_told_at_once_and_not_asked_for_again():
    handle = Handle(None, None)
    long = GenerationRequest(sample=request().sample, request_id="long")
    with pytest.raises(DataError, match="too long"):
        asyncio.run(engines(handle).generate(long))
    assert len(handle.asked) == 1


def test_an_answer_is_not_asked_for_without_end():
    handle = Handle(*[0] * 10)
    with pytest.raises(ActorDiedError):
        asyncio.run(engines(handle).generate(request()))
    assert len(handle.asked) == ATTEMPTS
