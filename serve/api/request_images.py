"""The images of a request: their bytes, wherever they come from, and their pixels by their headers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from casa_core.errors import MediaError
from casa_core.media.data_uri import from_data_uri, is_data_uri
from casa_core.media.decode import image_header
from serve.api.errors import bad_request, invalid_image, one_line
from serve.api.files import stored
from serve.api.schemas import ImagePart, Message
from serve.api.settings import Limits
from serve.fetch.fetcher import ImageFetcher, Room
from serve.files.store import ID_PREFIX, Files

Places = Mapping[str, str]
"""The address of each image of a request by its place, as `param` of an error names it; in order."""


def image_places(messages: Sequence[Message]) -> Places:
    """The images of a conversation.

    Raises:
        ApiError: 400 for one that is not in a user's message.
    """
    found = {}
    for index, message in enumerate(messages):
        for number, part in enumerate([] if isinstance(message.content, str) else message.content):
            if isinstance(part, ImagePart):
                place = f"messages[{index}].content[{number}].image_url.url"
                if message.role != "user":
                    raise bad_request("Images are accepted in user messages only.", place)
                found[place] = part.image_url.url
    return found


@dataclass(frozen=True, slots=True)
class ImageSources:
    """Where images come from that are not in the request itself.

    Attributes:
        fetcher: For those that are named by their http(s) addresses; ``None`` refuses them.
        files: The uploaded ones, named by their ids; ``None`` refuses them.
    """

    fetcher: ImageFetcher | None = None
    files: Files | None = None


async def load_images(places: Places, limits: Limits, sources: ImageSources) -> tuple[list[bytes], int]:
    """Encoded bytes of each image, and the pixels of all together, by their headers: none is decoded.

    Raises:
        ApiError: 400 with the offending place, 404 for a file that is not kept.
    """
    if len(places) > limits.images_per_request:
        message = f"{len(places)} images; at most {limits.images_per_request} are accepted."
        raise bad_request(message, "messages", "too_many_images")
    fetcher, files = sources.fetcher, sources.files
    elsewhere: dict[str, bytes] = {}
    if files is not None:
        uploaded = {place: url for place, url in places.items() if url.startswith(ID_PREFIX)}
        for place, file_id in uploaded.items():
            elsewhere[place] = (await stored(files, file_id, place)).data
    if fetcher is not None and (remote := {place: url for place, url in places.items() if is_remote(url)}):
        elsewhere |= await _fetch(remote, limits, fetcher)

    def read() -> tuple[list[bytes], int]:
        data = {
            place: elsewhere[place] if place in elsewhere else image_bytes(url, place)
            for place, url in places.items()
        }
        return list(data.values()), count_pixels(data, limits)

    return await asyncio.to_thread(read)


def count_pixels(images: Mapping[str, bytes], limits: Limits) -> int:
    """Pixels of some images before resizing, all together, by their headers.

    Args:
        images: Encoded bytes by their place in the request.

    Raises:
        ApiError: 400 for bytes that are not an image, and for too many pixels.
    """
    pixels = 0
    for place, data in images.items():
        try:
            pixels += image_header(data, max_pixels=limits.image_pixels)[1]
        except MediaError as error:
            raise invalid_image(error, place) from error
        if pixels > limits.request_pixels:
            raise bad_request(
                f"The images up to this one have {pixels} pixels; at most {limits.request_pixels} are "
                "accepted in one request. Send fewer or smaller images.",
                place,
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
        place = None if error.image is None else list(image_places(messages))[error.image]
        raise invalid_image(error, place) from error


def is_remote(url: str) -> bool:
    """Whether an address is one that must be fetched."""
    return url.lower().startswith(("http:", "https:"))


def image_bytes(url: str, param: str) -> bytes:
    """The bytes inside a base64 data URI.

    Raises:
        ApiError: 400 for any other kind of URL.
    """
    if not is_data_uri(url):
        scheme = url.split(":", 1)[0][:12] if ":" in url[:12] else "a relative"
        raise bad_request(
            f"Images must be sent as data URIs (data:image/png;base64,…), not as {scheme} URLs: "
            "this server never fetches addresses whose hosts are not listed.",
            param,
            "unsupported_image_url",
        )
    try:
        return from_data_uri(url)
    except MediaError as error:
        raise invalid_image(error, param) from error


async def _fetch(remote: Places, limits: Limits, fetcher: ImageFetcher) -> dict[str, bytes]:
    """Fetched bytes by place; of all together no more than a request's own body may have."""
    room = Room(limits.body_bytes)

    async def one(place: str, url: str) -> bytes:
        try:
            return await fetcher.fetch(url, room)
        except MediaError as error:
            raise bad_request(one_line(error), place, error.reason) from error

    try:
        async with asyncio.TaskGroup() as group:
            running = {place: group.create_task(one(place, url)) for place, url in remote.items()}
    except BaseExceptionGroup as failed:  # the others were cancelled
        raise failed.exceptions[0] from failed
    return {place: task.result() for place, task in running.items()}
