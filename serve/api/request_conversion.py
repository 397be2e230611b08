"""An OpenAI request → the engine's `GenerationRequest`, every image checked on the way."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Iterator

from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.errors import MediaError
from casa_core.media.decode import decode_image
from casa_core.types import Image, Part, Role, Sample, Text
from serve.api.errors import ApiError, invalid_image
from serve.api.schemas import ChatCompletionRequest, ImagePart, Message, TextPart
from serve.api.settings import Limits, ServeSettings

_DATA_URI = re.compile(r"data:(?P<type>[^;,]*)(?P<params>(?:;[^;,]*)*),", re.IGNORECASE)


async def to_generation_request(
    body: ChatCompletionRequest, settings: ServeSettings, request_id: str
) -> GenerationRequest:
    """Check a conversation against the limits and decode each of its images once.

    Raises:
        ApiError: 400 with the offending field in `param`.
    """
    limits = settings.limits
    if len(body.messages) > limits.messages_per_request:
        raise ApiError(
            400,
            f"{len(body.messages)} messages; at most {limits.messages_per_request} are accepted.",
            code="too_many_messages",
            param="messages",
        )
    if body.messages[-1].role != "user":
        raise ApiError(
            400,
            "The conversation must end with a user message.",
            code="invalid_value",
            param=f"messages[{len(body.messages) - 1}].role",
        )
    parts = [part for index, message in enumerate(body.messages) for part in _parts(message, index)]
    images = [(param, part.data) for param, part in parts if isinstance(part, Image)]
    if len(images) > limits.images_per_request:
        raise ApiError(
            400,
            f"{len(images)} images; at most {limits.images_per_request} are accepted.",
            code="too_many_images",
            param="messages",
        )
    for param, data in images:
        await check_image(data or b"", limits, param)
    sample = Sample(source="request", sample_id=request_id, parts=tuple(part for _, part in parts))
    return GenerationRequest(sample=sample, sampling=_sampling(body, settings), request_id=request_id)


async def check_image(data: bytes, limits: Limits, param: str) -> None:
    """Decode in a helper thread, for the error alone: a bad image is refused before it reaches the engine."""
    try:
        await asyncio.to_thread(decode_image, data, max_pixels=limits.image_pixels)
    except MediaError as error:
        raise invalid_image(error, param) from error


def image_bytes(url: str, param: str) -> bytes:
    """The bytes inside a base64 data URI.

    Raises:
        ApiError: 400 for any other kind of URL. The server fetches nothing on a client's behalf, so a request
            can never make it read an internal address.
    """
    match = _DATA_URI.match(url)
    if match is None:
        scheme = url.split(":", 1)[0][:12] if ":" in url[:12] else "a relative"
        raise ApiError(
            400,
            f"Images must be sent as data URIs (data:image/png;base64,…), not as {scheme} URLs: "
            "this server never fetches remote addresses.",
            code="unsupported_image_url",
            param=param,
        )
    media_type = match["type"].lower()
    if not media_type.startswith("image/") or "base64" not in match["params"].lower().split(";"):
        raise ApiError(
            400,
            "Expected a data URI of the form data:image/…;base64,… and got "
            f"data:{match['type']}{match['params']}.",
            code="invalid_image",
            param=param,
        )
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            400, f"The data URI does not hold valid base64: {error}.", code="invalid_image", param=param
        ) from error


def _parts(message: Message, index: int) -> Iterator[tuple[str, Part]]:
    """A message's parts, each with its place in the request."""
    role: Role = "system" if message.role == "developer" else message.role
    place = f"messages[{index}].content"
    if isinstance(message.content, str):
        if not message.content and role == "user":
            raise ApiError(400, "A user message must not be empty.", code="invalid_value", param=place)
        yield place, Text(role=role, text=message.content)
        return
    if not message.content:
        raise ApiError(400, "A message must not be empty.", code="invalid_value", param=place)
    for number, part in enumerate(message.content):
        match part:
            case TextPart():
                yield f"{place}[{number}].text", Text(role=role, text=part.text)
            case ImagePart():
                param = f"{place}[{number}].image_url.url"
                if role != "user":
                    raise ApiError(
                        400, "Images are accepted in user messages only.", code="invalid_value", param=param
                    )
                yield param, Image(role=role, data=image_bytes(part.image_url.url, param))


def _sampling(body: ChatCompletionRequest, settings: ServeSettings) -> SamplingParams:
    limits = settings.limits
    limit_name = "max_completion_tokens" if body.max_completion_tokens is not None else "max_tokens"
    asked = body.max_completion_tokens or body.max_tokens
    if asked is not None and asked > settings.max_new_tokens:
        raise ApiError(
            400,
            f"{limit_name} is {asked}; this deployment answers with at most {settings.max_new_tokens}.",
            code="invalid_value",
            param=limit_name,
        )
    if len(body.stop_strings) > limits.stop_strings:
        raise ApiError(
            400,
            f"At most {limits.stop_strings} stop strings are accepted.",
            code="invalid_value",
            param="stop",
        )
    return SamplingParams(
        max_new_tokens=asked or settings.max_new_tokens,
        temperature=0.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=body.stop_strings,
    )
