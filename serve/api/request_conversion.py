"""An OpenAI request → the engine's `GenerationRequest`, every image checked on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.errors import MediaError
from casa_core.media.data_uri import from_data_uri, is_data_uri
from casa_core.media.decode import image_header
from casa_core.processing.arrangement import Content, arrange, role_of
from casa_core.types import Image, Role, Sample
from serve.api.errors import bad_request, invalid_image
from serve.api.schemas import ChatCompletionRequest, ImagePart, Message, TextPart
from serve.api.settings import Limits, ServeSettings


async def to_generation_requests(
    body: ChatCompletionRequest, settings: ServeSettings, request_id: str
) -> list[GenerationRequest]:
    """Check a conversation and the headers of its images against the limits.

    No picture is decoded here: the engine does it, once; :func:`images_named` is for what it finds.

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
    images: list[tuple[str, bytes]] = []
    turns = [_turn(message, index, images) for index, message in enumerate(body.messages)]
    _check_texts(turns, limits)
    if len(images) > limits.images_per_request:
        message = f"{len(images)} images; at most {limits.images_per_request} are accepted."
        raise bad_request(message, "messages", "too_many_images")
    pixels = await asyncio.to_thread(count_pixels, images, limits)
    sample = Sample(source="request", sample_id=request_id, parts=arrange(turns))
    sampling = _sampling(body, settings)
    seeds = [None if body.seed is None else body.seed + number for number in range(body.n)]
    return [
        GenerationRequest(
            sample=sample, sampling=replace(sampling, seed=seed), request_id=request_id, pixels=pixels
        )
        for seed in seeds
    ]


def count_pixels(images: Sequence[tuple[str, bytes]], limits: Limits) -> int:
    """Pixels of some images before resizing, all together, by their headers.

    Args:
        images: Place in the request and encoded bytes of each.

    Raises:
        ApiError: 400 for bytes that are not an image, and for too many pixels, before any is decoded.
    """
    pixels = 0
    for param, data in images:
        try:
            pixels += image_header(data, max_pixels=limits.image_pixels)[1]
        except MediaError as error:
            raise invalid_image(error, param) from error
        if pixels > limits.request_pixels:
            raise bad_request(
                f"The images up to this one have {pixels} pixels; at most {limits.request_pixels} are "
                "accepted in one request. Send fewer or smaller images.",
                param,
                "too_many_pixels",
            )
    return pixels


@contextmanager
def images_named(messages: Sequence[Message]) -> Iterator[None]:
    """Refuse an image that the engine cannot use by its place in the request.

    Raises:
        ApiError: 400 in place of a `MediaError`.
    """
    try:
        yield
    except MediaError as error:
        places = [
            _place(index, number)
            for index, message in enumerate(messages)
            if not isinstance(message.content, str)
            for number, part in enumerate(message.content)
            if isinstance(part, ImagePart)
        ]
        raise invalid_image(error, None if error.image is None else places[error.image]) from error


def _place(message: int, part: int) -> str:
    return f"messages[{message}].content[{part}].image_url.url"


def image_bytes(url: str, param: str) -> bytes:
    """The bytes inside a base64 data URI.

    Raises:
        ApiError: 400 for any other kind of URL. The server fetches nothing on a client's behalf, so a request
            can never make it read an internal address.
    """
    if not is_data_uri(url):
        scheme = url.split(":", 1)[0][:12] if ":" in url[:12] else "a relative"
        raise bad_request(
            f"Images must be sent as data URIs (data:image/png;base64,…), not as {scheme} URLs: "
            "this server never fetches remote addresses.",
            param,
            "unsupported_image_url",
        )
    try:
        return from_data_uri(url)
    except MediaError as error:
        raise invalid_image(error, param) from error


def _turn(message: Message, index: int, images: list[tuple[str, bytes]]) -> tuple[Role, Content]:
    """A message as a turn; its images are appended to ``images``, each with its place in the request."""
    role = role_of(message.role)
    assert role is not None, "the schema admits no other roles"
    place = f"messages[{index}].content"
    if isinstance(message.content, str):
        if not message.content and role == "user":
            raise bad_request("A user message must not be empty.", place)
        return role, [message.content]
    if not message.content and role != "assistant":
        raise bad_request("A message must not be empty.", place)
    content: list[str | Image] = []
    for number, part in enumerate(message.content):
        match part:
            case TextPart():
                content.append(part.text)
            case ImagePart():
                param = _place(index, number)
                if role != "user":
                    raise bad_request("Images are accepted in user messages only.", param)
                data = image_bytes(part.image_url.url, param)
                images.append((param, data))
                content.append(Image(data=data))
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
