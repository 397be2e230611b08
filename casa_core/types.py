"""Data types of conversations: parts, samples, and samples encoded as token ids.

A ``Sample`` is an ordered list of parts. A question about a picture, a chat over several turns, a document
page, a video with a question and a live-caption stream are all this one thing:

* picture and question: ``[Image(user), Text(user), Text(assistant, trained)]``
* live captions: ``[Text(user, the query), Image(assistant, t=0), Text(assistant, "a red", trained),
  Image(assistant, t=0.5), Text(assistant, "", trained), …]``: an image that lies *inside* the assistant's
  turn is a live frame; the assistant text after it, possibly empty, is generated before the next frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A run of text in one turn.

    Attributes:
        role: Whose turn it belongs to.
        text: The words, without any template markup.
        trained: Whether the loss counts these tokens (answers) or not (questions).
    """

    role: Role
    text: str
    trained: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A still picture, or one frame of a video, at its position in the conversation.

    Attributes:
        role: The turn it lies in; ``assistant`` marks a frame of a live stream.
        data: Encoded bytes (PNG, JPEG, …) of a picture, or of the whole video when ``timestamp`` picks a
            frame of it; ``None`` when only the layout matters (token counting).
        media: Index of the bytes among the sample's media, where several parts share one video.
        timestamp: Seconds in the source video; ``None`` for a still picture.
    """

    role: Role = "user"
    data: bytes | None = None
    media: int = 0
    timestamp: float | None = None


Part = Text | Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One conversation, independent of any model.

    Attributes:
        source: Name of the data source in the recipe.
        sample_id: Unique within the source; may contain "/".
        parts: In reading order.
    """

    source: str
    sample_id: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Pixels of one image: as stored, and as the vision tower sees it after resizing.

    Attributes:
        original_height, original_width: As decoded (EXIF orientation applied).
        height, width: After resizing; multiples of the patch size times the merge size.
        tokens: Image tokens after the patch merge.
    """

    original_height: int
    original_width: int
    height: int
    width: int
    tokens: int


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample as ids, before packing.

    Attributes:
        input_ids: Token ids of the whole conversation, template included.
        loss_mask: One flag per token: whether the loss counts the prediction *of* this token.
        image_positions: For each image, the index of the first text token that follows it.
        turns: ``(start, end)`` token spans of each assistant turn's trained text.
        images: Sizes of each image, in order.
    """

    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    image_positions: tuple[int, ...]
    turns: tuple[tuple[int, int], ...]
    images: tuple[ImageSize, ...]
