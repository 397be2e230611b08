"""lmms-eval's messages of a chat → a conversation: pictures without loss, videos as training shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image as Pillow

from casa_core.errors import DataError
from casa_core.media.data_uri import from_data_uri, is_data_uri
from casa_core.media.decode import encode_png, pillow_to_rgb
from casa_core.processing.arrangement import arrange
from casa_core.types import Image, Sample
from pipelines.evaluate.benchmarks.videos.files import VideoFolder

if TYPE_CHECKING:
    from lmms_eval.protocol import ChatMessages  # pyright: ignore[reportMissingImports]


def to_sample(chat: ChatMessages, name: str) -> Sample:
    """The conversation that a model is asked to continue.

    Args:
        chat: Texts, pictures and videos of system, user and assistant; the user's turn is the last.
        name: The conversation's, for errors and results.

    Raises:
        DataError: For audio, for a picture in an assistant's turn, for a picture or video that is given in a
            way unknown here, or if the assistant's turn is the last.
        MediaError: If a video cannot be opened.
    """
    numbers = count()
    if not chat.messages or chat.messages[-1].role == "assistant":
        raise DataError(
            f"The messages of {name} end with the assistant's own.",
            "An answer is what follows a user's turn; none is continued.",
            "Have the task's `doc_to_messages` end with a message of the user.",
        )
    turns = []
    for message in chat.messages:
        content: list[str | Image] = []
        for part in message.content:
            if part.type == "text":
                content.append(part.text)
                continue
            if message.role == "assistant":
                raise DataError(
                    f"A message of the assistant in {name} holds a part of type {part.type}.",
                    "A picture in the assistant's turn would be a frame of a live stream.",
                    "Put it into a message of the user.",
                )
            number = next(numbers)
            content += [replace(image, media=number) for image in _images(part, name)]
        turns.append((message.role, content))
    return Sample(source="lmms-eval", sample_id=name, parts=arrange(turns))


def _images(part: Any, name: str) -> Sequence[Image]:
    match part.type:
        case "image":
            return [Image(data=_picture(part.url, name))]
        case "video":
            return _frames(part.url, part.start_time, part.end_time, name)
    raise DataError(
        f"{name} holds a part of type {part.type}.",
        "CASA models see pictures and videos, and hear nothing.",
        "Leave the task out.",
    )


def _picture(shown: Any, name: str) -> bytes:
    """The encoded bytes of a picture; of one that is decoded already, a PNG with the pixels that its file
    would give."""
    match shown:
        case Pillow.Image():
            return encode_png(pillow_to_rgb(shown))
        case bytes():
            return shown
        case str() if is_data_uri(shown):
            return from_data_uri(shown)
        case str() | Path() if Path(shown).is_file():
            return Path(shown).read_bytes()
    raise _unknown("picture", shown, name)


def _frames(shown: Any, start: float | None, until: float | None, name: str) -> Sequence[Image]:
    """The frames of a video, or of a part of it, at the times at which training shows them."""
    if isinstance(shown, dict):  # as lmms-eval makes a video of which a part is meant
        start, until = shown.get("video_start", start), shown.get("video_end", until)
        shown = shown.get("url") or shown.get("path") or shown.get("video")
    if not isinstance(shown, str | Path) or not Path(shown).is_file():
        raise _unknown("video", shown, name)
    file = Path(shown)
    return VideoFolder(file.parent).frames(file.name, start or 0.0, until)


def _unknown(kind: str, shown: Any, name: str) -> DataError:
    given = repr(shown) if isinstance(shown, str | Path) else f"a {type(shown).__name__}"
    kinds = "its path" if kind == "video" else "a PIL image, its path, its bytes or a data URI"
    return DataError(
        f"A {kind} of {name} cannot be read: it is given as {given:.200}.",
        f"A {kind} is read from {kinds}; nothing is fetched from an address.",
        "Have the task load it, or name a file that exists.",
    )
