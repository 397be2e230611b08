"""Conversations and pictures as callers pass them to ``CasaProcessor`` → samples and decoded pixels.

Three spellings of a conversation: a :class:`Sample`; a list of messages as OpenAI's and transformers' chat
calls have them, with ``{"type": "text", "text": …}`` and ``{"type": "image"}`` parts; a plain string, which
is one user turn with its images before the text. What a picture may be:
:mod:`casa_core.processing.picture_sources`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np

from casa_core.errors import DataError
from casa_core.media.decode import decode_pictures
from casa_core.processing.arrangement import Content, arrange, role_of
from casa_core.processing.picture_sources import Rgb, picture_of_part, picture_to_rgb
from casa_core.types import Image, Role, Sample

Message = Mapping[str, Any]
Conversation = Sample | str | Sequence[Message]


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation with its pixels.

    Attributes:
        sample: Its parts.
        pictures: (height, width, 3) RGB of each of its images, in order, decoded as they are asked for: the
            frames of a long video do not fit into memory together.
    """

    sample: Sample
    pictures: Iterator[Rgb]


def read_rows(text: Conversation | Sequence[Conversation], images: Any = None) -> list[Row]:
    """Conversations with their pictures, which are decoded only when they are asked for.

    Args:
        text: One conversation or a list of them.
        images: Pictures of the image parts that carry none of their own, in order: one, a flat list over all
            conversations, or a list for each conversation.

    Raises:
        DataError: If a conversation is not understood, or the images do not match its image parts.
        MediaError: From a row's pictures, where one cannot be decoded.
    """
    conversations = _as_list(text)
    if any(isinstance(one, str) for one in conversations):
        return _read_strings(conversations, images)
    drafts = [_Draft.read(one, row) for row, one in enumerate(conversations)]
    wanted = [draft.wanted for draft in drafts]
    shares = _share(images, wanted)
    return [Row(draft.sample, draft.fill(share)) for draft, share in zip(drafts, shares, strict=True)]


def _as_list(text: Any) -> list[Conversation]:
    """One conversation is a list of one. A list of messages is one conversation."""
    if isinstance(text, (Sample, str)):
        return [text]
    if not isinstance(text, Sequence) or not text:
        raise DataError(
            f"`text` is {text!r:.80}.",
            "Expected a conversation (a Sample, a list of messages or a string) or a list of them.",
            "Pass what the user says as a string, or as messages with a role and a content.",
        )
    return [text] if isinstance(text[0], Mapping) else list(text)


def _read_strings(conversations: list[Conversation], images: Any) -> list[Row]:
    if not all(isinstance(one, str) for one in conversations):
        raise DataError(
            "`text` mixes strings with conversations.",
            "Images that no part names go to strings by rows, to messages by their image parts.",
            "Write the strings as messages too.",
        )
    if len(conversations) == 1 and not _is_nested(images):
        images = [_as_pictures(images)]
    if images is not None and (not _is_nested(images) or len(images) != len(conversations)):
        raise DataError(
            f"Which of the {len(conversations)} strings the images belong to is not known.",
            "A string has no image parts.",
            "Pass one list of images per string, [] for none, or write them as messages.",
        )
    rows = []
    for row, words in enumerate(conversations):
        pictures = _as_pictures(images[row]) if images is not None else []
        parts = arrange([("user", [*(Image() for _ in pictures), cast(str, words)])])
        sample = Sample(source="call", sample_id=str(row), parts=parts)
        named = [(f"images[{row}][{n}]", picture) for n, picture in enumerate(pictures)]
        rows.append(Row(sample, (picture_to_rgb(picture, name) for name, picture in named)))
    return rows


@dataclass(frozen=True, slots=True)
class _Draft:
    """A conversation read, its missing pictures not yet filled in.

    Attributes:
        sample: Its parts.
        own: The picture that each image part brings, or ``None``; of a sample's part with bytes, the part.
    """

    sample: Sample
    own: list[Any]

    @classmethod
    def read(cls, conversation: Any, row: int) -> _Draft:
        if isinstance(conversation, Sample):
            images = [part for part in conversation.parts if isinstance(part, Image)]
            return cls(conversation, [None if image.data is None else image for image in images])
        own: list[Any] = []
        turns = [_turn(message, f"messages[{number}]", own) for number, message in enumerate(conversation)]
        return cls(Sample(source="call", sample_id=str(row), parts=arrange(turns)), own)

    @property
    def wanted(self) -> int:
        """Pictures the caller must give."""
        return sum(picture is None for picture in self.own)

    def fill(self, share: Sequence[tuple[str, Any]]) -> Iterator[Rgb]:
        """All pictures in order; ``share`` names and gives those that are missing."""
        given = iter(share)
        parts = [own for own in self.own if isinstance(own, Image)]
        decoded = decode_pictures([(part.data or b"", part.timestamp) for part in parts])
        for number, own in enumerate(self.own):
            if isinstance(own, Image):
                yield next(decoded)
                continue
            name, picture = next(given) if own is None else (f"Image {number} of the conversation", own)
            yield picture_to_rgb(picture, name)


def _turn(message: Any, name: str, own: list[Any]) -> tuple[Role, Content]:
    """One message; the picture that each image part brings, or None, is appended to ``own``."""
    said = message.get("role") if isinstance(message, Mapping) else None
    role = role_of(said)
    if role is None:
        raise DataError(
            f"{name} has the role {said!r}.",
            f"Expected a message with one of the roles {', '.join(get_args(Role))}.",
            'Write it as {"role": "user", "content": …}.',
        )
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
    return role, [_piece(part, role, f"{name}.content[{n}]", own) for n, part in enumerate(parts)]


def _piece(part: Any, role: Role, name: str, own: list[Any]) -> str | Image:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind in ("image", "image_url") and role == "user":
        own.append(picture_of_part(part, name))
        return Image()
    if kind == "video":
        raise DataError(
            f"{name} is a video.",
            "A message does not say which of its frames are shown, and when; a Sample does.",
            "Pass a Sample with an Image per frame (data: the video's bytes, timestamp: seconds into it).",
        )
    if kind in ("image", "image_url"):
        raise DataError(
            f"{name} is an image in the {role}'s turn.",
            "In a list of messages only users show images.",
            "Pass a Sample for a live stream, whose frames lie in the assistant's turn.",
        )
    raise DataError(
        f"{name} is {part!r:.80}.",
        'Expected {"type": "text", "text": …}, {"type": "image"} or {"type": "image_url"}.',
        "Pass a picture as images=, or as the part's own image, url, path or base64.",
    )


def _is_nested(images: Any) -> bool:
    return isinstance(images, (list, tuple)) and bool(images) and isinstance(images[0], (list, tuple))


def _as_pictures(images: Any) -> list[Any]:
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _share(images: Any, wanted: Sequence[int]) -> list[list[tuple[str, Any]]]:
    """Each conversation's pictures, with their names."""
    if _is_nested(images):
        if len(images) != len(wanted):
            raise DataError(
                f"`images` has {len(images)} lists for {len(wanted)} conversations.",
                "A list of lists holds each conversation's pictures.",
                "Pass one list per conversation, [] for none.",
            )
        shares = [
            [(f"images[{row}][{n}]", picture) for n, picture in enumerate(own)]
            for row, own in enumerate(images)
        ]
        for row, (share, count) in enumerate(zip(shares, wanted, strict=True)):
            _check_count(len(share), count, f"images[{row}]", f"conversation {row}")
        return shares
    named = [(f"images[{n}]", picture) for n, picture in enumerate(_as_pictures(images))]
    _check_count(len(named), sum(wanted), "`images`", "the text")
    ends = np.cumsum(wanted)
    return [named[end - count : end] for end, count in zip(ends, wanted, strict=True)]


def _check_count(given: int, wanted: int, name: str, where: str) -> None:
    if given != wanted:
        raise DataError(
            f"{name} has {given} pictures; {where} has {wanted} image parts without one.",
            'Each {"type": "image"} part without a picture of its own takes one, in order.',
            "Pass as many pictures as there are such parts.",
        )
