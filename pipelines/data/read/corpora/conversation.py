"""Conversations as corpora encode them → parts of a sample.

A turn is ``{role, content}`` or ``{from, value}``, or has all four fields of which one pair is null. Roles
are those of :data:`casa_core.processing.arrangement.ROLES`. A content is a text, or a list of texts and
pictures (``{type: text, text}``, ``{type: image, image}`` or with ``url`` or ``path``, ``{type: image_url,
image_url: {url}}``).

Where no picture is given as part of a content, placeholders in a user's text mark where they belong
(:mod:`pipelines.data.read.corpora.placeholders`); in all other texts such a word is a word. The parts are
arranged as the endpoint arranges a request: :func:`casa_core.processing.arrangement.arrange`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from casa_core.processing.arrangement import Content, arrange, role_of
from casa_core.types import Image, Part, Role, Text
from pipelines.data.read.corpora.placeholders import Kind, Placeholder, groups_meant, split_at_placeholders
from pipelines.data.read.source.base import BadRecord

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


def placed(
    turns: Sequence[Turn], groups: Sequence[Sequence[Image]], kind: Kind = "image"
) -> tuple[Part, ...]:
    """The parts of a sample whose pictures are given apart from its texts, answers trained.

    Args:
        turns: In order.
        groups: What one placeholder stands for, in the record's order: a picture, or the frames of a video.
            Without any placeholder they come before the user's first text.
        kind: What the groups are.

    Raises:
        BadRecord: As ``groups_meant`` and ``trainable``.
    """
    split = [[_split(turn.role, piece) for piece in turn.content] for turn in turns]
    marks = [piece for turn in split for text in turn for piece in text if isinstance(piece, Placeholder)]
    meant = iter(groups_meant(marks, len(groups), kind))
    waiting: list[str | Image] = [] if marks else [image for group in groups for image in group]
    filled: list[Turn] = []
    for turn, texts in zip(turns, split, strict=True):
        content: list[str | Image] = []
        if turn.role == "user":
            content, waiting = waiting, []
        for pieces in texts:
            content += _with_pictures(pieces, meant, groups)
        filled.append(Turn(turn.role, content))
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


def _split(role: Role, piece: str | Image) -> list[str | Image | Placeholder]:
    """A piece of a turn's content, with the placeholders taken out of a user's text."""
    if role != "user" or isinstance(piece, Image):
        return [piece]
    return [*split_at_placeholders(piece)]


def _with_pictures(
    pieces: Sequence[str | Image | Placeholder],
    meant: Iterator[int | None],
    groups: Sequence[Sequence[Image]],
) -> list[str | Image]:
    """The pieces of one text, pictures in the place of placeholders; those that are words remain in it."""
    content: list[str | Image] = []
    words = ""
    for piece in pieces:
        if isinstance(piece, Image):
            content.append(piece)
            continue
        group = next(meant) if isinstance(piece, Placeholder) else None
        if group is not None:
            content += [words, *groups[group]]
            words = ""
        else:
            words += piece.text if isinstance(piece, Placeholder) else piece
    return [*content, words]


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
