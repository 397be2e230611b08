"""Videos shown frame by frame as a live stream: watched and then asked about, or commented on as they go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

from casa_core.engine.requests import CaptionEvent, SamplingParams
from casa_core.media.decode import decode_images
from casa_core.types import Image, Sample, Text
from pipelines.data.store.rows import is_stream
from pipelines.evaluate.kept.answers import Answer, Caption

if TYPE_CHECKING:
    from casa_core.engine.requests import StreamSettings


async def watch(engine: Any, sample: Sample, sampling: SamplingParams) -> Answer:
    """Show the frames one by one, each with its words, then ask; the model has seen no later frame.

    Args:
        engine: A :class:`casa_core.engine.client.EngineClient`.
        sample: Frames of the user's turn, and the question.

    Raises:
        CasaError: As the engine refuses the stream or a frame.
    """
    from casa_core.engine.requests import StreamSettings

    most = sampling.max_new_tokens
    settings = StreamSettings(max_tokens_per_frame=1, max_tokens_per_prompt=most, sampling=sampling)
    async with _stream(engine, settings) as session:
        outcomes = aiter(session)
        async with aclosing(_shown(session, outcomes, sample)) as captions:
            async for _ in captions:
                pass
        await session.prompt(prompt_text(sample))
        return _answer([await anext(outcomes)])


async def comment(engine: Any, sample: Sample, sampling: SamplingParams) -> Answer:
    """Caption a live stream: each frame's words are generated before the next frame is shown, and joined.

    Args:
        engine, errors: As :func:`watch`.
        sample: The query, and frames of the assistant's turn.
        sampling: ``max_new_tokens`` bounds the words of one frame.
    """
    from casa_core.engine.requests import StreamSettings

    most = sampling.max_new_tokens
    settings = StreamSettings(query=prompt_text(sample), max_tokens_per_frame=most, sampling=sampling)
    async with (
        _stream(engine, settings) as session,
        aclosing(_shown(session, aiter(session), sample)) as captions,
    ):
        return _answer([caption async for caption in captions], live=True)


@asynccontextmanager
async def _stream(engine: Any, settings: StreamSettings) -> AsyncIterator[Any]:
    session = await engine.open_session(settings)
    try:
        yield session
    finally:
        session.close()


async def _shown(session: Any, outcomes: Any, sample: Sample) -> AsyncGenerator[CaptionEvent, None]:
    """The caption of each frame; a frame is decoded when it is its turn."""
    pictures = decode_images(sample)
    for frame in (part for part in sample.parts if isinstance(part, Image)):
        picture = await asyncio.to_thread(next, pictures)
        await session.push_frame(picture, frame.timestamp or 0.0)
        yield await anext(outcomes)


def _answer(events: list[CaptionEvent], *, live: bool = False) -> Answer:
    captions = tuple(
        Caption(timestamp=one.timestamp, text=one.text.strip(), truncated=one.truncated) for one in events
    )
    return Answer(
        text=" ".join(caption.text for caption in captions if caption.text),
        finish_reason="length" if any(caption.truncated for caption in captions) else "stop",
        prompt_tokens=sum(event.prompt_tokens for event in events),
        image_tokens=sum(event.image_tokens for event in events),
        completion_tokens=sum(len(event.token_ids) for event in events),
        captions=captions if live else (),
    )


def prompt_text(sample: Sample) -> str:
    """The user's last turn; of a live stream, the query."""
    words: list[str] = []
    for part in reversed(sample.parts):
        if part.role == "user":
            if isinstance(part, Text):
                words.append(part.text)
        elif not is_stream(sample):
            break
    return "\n".join(reversed(words))
