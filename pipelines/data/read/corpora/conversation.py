"""Conversations as corpora encode them → parts of a sample.

A turn is ``{role, content}`` or ``{from, value}``, or has all four fields of which one pair is null. Roles
are those of :data:`casa_core.processing.arrangement.ROLES`. A content is a text, or a list of texts and
pictures (``{type: text, text}``, ``{type: image, image}`` or with ``url`` or ``path``, ``{type: image_url,
image_url: {url}}``).

Where no picture is given as part of a content, ``<image>`` in a user's text marks where one belongs, and
``\\<image>`` stands for the word itself; in all other texts the word is a word. The parts are arranged as the
endpoint arranges a request: :func:`casa_core.processing.arrangement.arrange`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from casa_core.processing.arrangement import Content, arrange, role_of
from casa_core.types import Image, Part, Role, Text
from pipelines.data.read.source.base import BadRecord

IMAGE_MARKER = "<image>"
_MARKER = re.compile(r"(?<!\\)<image>")
_ESCAPED = "\\" + IMAGE_MARKER
_VALUES = ("image", "image_url", "url", "path")
"""Fields of a content's part that may hold its picture."""
_BESIDE = ("image", "images", "video", "videos")
"""Fields that some tools put beside a turn's text; they do not say where their pictures belong."""


class Turn(NamedTuple):
    """One message of a conversation; its pictures are numbered through all turns by ``Image.media``."""

    role: Role
    content: Content


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, and for each picture in their contents its value in the record, None where it has none."""

    turns: list[Turn]
    shown: list[Any]


def conversation_from(entries: Any) -> Conversation:
    """The turns of a ``conversations`` or ``messages`` field, in any encoding.

    Raises:
        BadRecord: ``missing_text``, ``unknown_role``, ``misplaced_image`` or ``bad_record``.
    """
    shown: list[Any] = []
    return Conversation([_turn(number, entry, shown) for number, entry in enumerate(_listed(entries))], shown)


def turns_from(entries: Any) -> list[Turn]:
    """The turns of a corpus whose pictures are in a column of their own; raises as ``conversation_from``."""
    found = conversation_from(entries)
    if found.shown:
        raise BadRecord("bad_record", "a turn has a picture as a part; pictures are in a column of their own")
    return found.turns


def turns_from_pairs(pairs: Any) -> list[Turn]:
    """The turns of FineVision's ``texts`` column, ``{user, assistant}`` each; raises as ``turns_from``."""
    pairs = _listed(pairs)
    turns: list[Turn] = []
    for number, pair in enumerate(pairs):
        if pair is not None and not isinstance(pair, Mapping):
            raise BadRecord("bad_record", f"turn {number} is not {{user, assistant}}: {_short(pair)}")
        for role in ("user", "assistant"):
            text = None if pair is None else pair.get(role)
            if text is None:
                raise BadRecord("missing_text", f"turn {number} of {len(pairs)} has no {role} text")
            turns.append(Turn(role, (_string(number, text),)))
    return turns


def placed(turns: Sequence[Turn], groups: Sequence[Sequence[Image]]) -> tuple[Part, ...]:
    """The parts of a sample whose pictures are given apart from its texts, answers trained.

    Args:
        turns: In order.
        groups: Pictures that one marker stands for, in the markers' order: one picture, or the frames of a
            video. Without any marker they come before the user's first text.

    Raises:
        BadRecord: ``missing_image`` for more markers than groups, ``unplaced_image`` for fewer, and as
            ``trainable``.
    """
    waiting = list(groups)
    split = [_split(turn) for turn in turns]
    marked = sum(isinstance(piece, _Marker) for content in split for piece in content)
    if marked > len(groups):
        raise BadRecord(
            "missing_image",
            f"the user's texts have {marked} {IMAGE_MARKER}, the record has {len(groups)} pictures; "
            f"write {_ESCAPED} where the word itself is meant",
        )
    if 0 < marked < len(groups):
        raise BadRecord(
            "unplaced_image",
            f"the record has {len(groups)} pictures, the user's texts {marked} {IMAGE_MARKER}: mark all or "
            f"none, and write {_ESCAPED} where the word itself is meant",
        )
    filled: list[Turn] = []
    for turn, content in zip(turns, split, strict=True):
        pieces: list[str | Image] = []
        if turn.role == "user" and not marked:
            pieces += [image for group in waiting for image in group]
            waiting = []
        for piece in content:
            pieces += waiting.pop(0) if isinstance(piece, _Marker) else [piece]
        filled.append(Turn(turn.role, pieces))
    return trainable(filled)


def trainable(turns: Sequence[Turn]) -> tuple[Part, ...]:
    """The parts of turns that hold their pictures.

    Raises:
        BadRecord: ``bad_turns`` unless the user and the assistant take turns, the user first and the
            assistant last, after a system text if any; ``missing_text`` for a blank question or answer.
    """
    parts = arrange(turns)
    roles: list[Role] = []
    for part in parts:
        if not roles or roles[-1] != part.role:
            roles.append(part.role)
        if isinstance(part, Text) and not part.text.strip():
            raise BadRecord("missing_text", f"the {len(roles)}. turn, the {part.role}'s, is blank")
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    wrong = ""
    if "system" in spoken:
        wrong = "a system text comes after the first turn"
    elif not spoken:
        wrong = "there is neither a question nor an answer"
    elif spoken[0] != "user":
        wrong = "the first is not the user's"
    elif spoken[-1] != "assistant":
        wrong = "the last is the user's, and has no answer"
    if wrong:
        raise BadRecord("bad_turns", f"the turns go {', '.join(roles)}: {wrong}")
    return parts


def pictures(count: int) -> list[list[Image]]:
    """Groups of ``placed`` for still pictures: the media from 0 on, one each."""
    return [[Image(media=number)] for number in range(count)]


class _Marker:
    """Where a picture belongs."""


def _split(turn: Turn) -> list[str | Image | _Marker]:
    """A turn's content with the markers taken out of a user's texts."""
    pieces: list[str | Image | _Marker] = []
    for piece in turn.content:
        if turn.role != "user" or isinstance(piece, Image):
            pieces.append(piece)
            continue
        for number, text in enumerate(_MARKER.split(piece)):
            pieces += [_Marker()] if number else []
            pieces.append(text.replace(_ESCAPED, IMAGE_MARKER))
    return pieces


def _turn(number: int, entry: Any, shown: list[Any]) -> Turn:
    if not isinstance(entry, Mapping):
        raise BadRecord("bad_record", f"turn {number} is not {{role, content}}: {_short(entry)}")
    speaker = _either(number, entry, "role", "from")
    if not isinstance(speaker, str):
        raise BadRecord("bad_record", f"turn {number} does not say who speaks: {_short(entry)}")
    role = role_of(speaker)
    if role is None:
        raise BadRecord("unknown_role", f"turn {number} is by {speaker!r}")
    if beside := [name for name in _BESIDE if entry.get(name)]:
        detail = f"turn {number} has pictures in {beside[0]}, beside its text; write them as parts of it"
        raise BadRecord("misplaced_image", detail)
    said = _either(number, entry, "content", "value")
    if said is None:
        raise BadRecord("missing_text", f"turn {number} has no text")
    if isinstance(said, list):
        return Turn(role, [_piece(number, role, piece, shown) for piece in said])
    return Turn(role, (_string(number, said),))


def _piece(number: int, role: Role, entry: Any, shown: list[Any]) -> str | Image:
    """A part of a turn's content; a picture's value is appended to ``shown``."""
    if isinstance(entry, str):
        return entry
    kind = entry.get("type") if isinstance(entry, Mapping) else None
    if kind == "text" and isinstance(entry.get("text"), str):
        return entry["text"]
    if kind not in ("image", "image_url"):
        expected = "expected text, image or image_url"
        raise BadRecord("bad_record", f"turn {number} has a part of type {kind!r}; {expected}")
    if role != "user":
        raise BadRecord("misplaced_image", f"a picture stands in turn {number}, the {role}'s")
    found = next((entry[name] for name in _VALUES if entry.get(name) is not None), None)
    shown.append(found["url"] if isinstance(found, Mapping) and found.get("url") is not None else found)
    at = entry.get("index")
    if isinstance(at, int) and found is None and at != len(shown) - 1:
        detail = f"picture {len(shown) - 1} of the messages has the index {at}; pictures are used in order"
        raise BadRecord("bad_record", detail)
    return Image(media=len(shown) - 1)


def _either(number: int, entry: Mapping[str, Any], *names: str) -> Any:
    """The value of whichever field is there and not null."""
    found = [entry[name] for name in names if entry.get(name) is not None]
    if len(found) > 1 and found[0] != found[1] and names[0] == "content":
        raise BadRecord("bad_record", f"turn {number} has two different texts, {' and '.join(names)}")
    return found[0] if found else None


def _listed(entries: Any) -> list[Any]:
    if entries is None or (isinstance(entries, list) and not entries):
        raise BadRecord("missing_text", "the record has no turns")
    if not isinstance(entries, list):
        raise BadRecord("bad_record", f"the turns are no list: {_short(entries)}")
    return entries


def _string(number: int, text: Any) -> str:
    if not isinstance(text, str):
        raise BadRecord("bad_record", f"the text of turn {number} is no string: {_short(text)}")
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
