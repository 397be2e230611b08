"""An OpenAI request → the engine's `GenerationRequest`, every image checked on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.processing.arrangement import Content, arrange, is_blank, role_of
from casa_core.types import Image, Role, Sample
from serve.api.errors import bad_request
from serve.api.request_images import ImageSources, image_places, load_images
from serve.api.schemas import ChatCompletionRequest, Message, TextPart
from serve.api.settings import Limits, ServeSettings

_NO_SOURCES = ImageSources()


async def to_generation_requests(
    body: ChatCompletionRequest,
    settings: ServeSettings,
    request_id: str,
    sources: ImageSources = _NO_SOURCES,
) -> list[GenerationRequest]:
    """Check a conversation and the headers of its images against the limits.

    No picture is decoded here: the engine does it, once, and
    :func:`serve.api.request_images.images_named` is for what it finds.

    Args:
        sources: Where images come from that are not in the body itself.

    Returns:
        A request for each answer that is wanted.

    Raises:
        ApiError: 400 with the offending field in `param`.
    """
    limits = settings.limits
    if len(body.messages) > limits.messages_per_request:
        message = f"{len(body.messages)} messages; at most {limits.messages_per_request} are accepted."
        raise bad_request(message, "messages", "too_many_messages")
    if body.messages[-1].role == "assistant":
        last = f"messages[{len(body.messages) - 1}].role"
        raise bad_request(
            "The conversation ends with the assistant's own message, and answers are not continued: "
            "end it with the user's.",
            last,
        )
    if body.n > limits.choices:
        raise bad_request(f"n is {body.n}; at most {limits.choices} answers are given to a request.", "n")
    turns = [_turn(message, index) for index, message in enumerate(body.messages)]
    _check_texts(turns, limits)
    images, pixels = await load_images(image_places(body.messages), limits, sources)
    data = iter(images)
    parts = [replace(part, data=next(data)) if isinstance(part, Image) else part for part in arrange(turns)]
    sample = Sample(source="request", sample_id=request_id, parts=tuple(parts))
    sampling = _sampling(body, settings)
    seeds = [None if body.seed is None else body.seed + number for number in range(body.n)]
    return [
        GenerationRequest(
            sample=sample,
            sampling=replace(sampling, seed=seed),
            request_id=request_id,
            pixels=pixels,
            model=body.model,
        )
        for seed in seeds
    ]


def _turn(message: Message, index: int) -> tuple[Role, Content]:
    """A message as a turn, its images without their bytes."""
    role = role_of(message.role)
    assert role is not None, "the schema admits no other roles"
    parts = [message.content] if isinstance(message.content, str) else message.content
    content = [
        part if isinstance(part, str) else part.text if isinstance(part, TextPart) else Image()
        for part in parts
    ]
    if role == "user" and is_blank(content):
        raise bad_request("A user message must hold a text or a picture.", f"messages[{index}].content")
    return role, content


def _check_texts(turns: Sequence[tuple[Role, Content]], limits: Limits) -> None:
    """Refuse more text than any context holds before it is tokenized, which takes minutes for megabytes."""
    length = 0
    for index, (_, content) in enumerate(turns):
        length += sum(len(part) for part in content if isinstance(part, str))
        if length > limits.text_characters:
            raise bad_request(
                f"The texts have more than {limits.text_characters} characters together. Send less text.",
                f"messages[{index}].content",
                "text_too_long",
            )


def _sampling(body: ChatCompletionRequest, settings: ServeSettings) -> SamplingParams:
    limits, most = settings.limits, settings.max_new_tokens
    asked = body.max_completion_tokens or body.max_tokens or -1
    if body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
    if len(body.stop_strings) > limits.stop_strings:
        raise bad_request(f"At most {limits.stop_strings} stop strings are accepted.", "stop")
    return SamplingParams(
        # Clamped and not refused: a harness that asks for too much records a refusal as a wrong answer.
        max_new_tokens=most if asked < 0 else min(asked, most),
        temperature=0.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        stop=body.stop_strings,
        logprobs=body.top_logprobs if body.logprobs else None,
    )
