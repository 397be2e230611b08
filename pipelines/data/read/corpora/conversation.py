"""Conversations as corpora encode them → parts of a sample.

A turn is ``{role, content}`` or ``{from, value}``, or has all four fields of which one pair is null. The user
is called user or human, the assistant assistant or gpt. ``<image>`` in the user's text marks where a picture
belongs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from casa_core.types import Image, Part, Role, Text
from pipelines.data.read.source.base import BadRecord

IMAGE_MARKER = "<image>"
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


class Turn(NamedTuple):
    """One message of a conversation."""

    role: Role
    text: str


def turns_from(entries: Any) -> list[Turn]:
    """The turns of a ``conversations`` column, in any of the four encodings.

    Raises:
        BadRecord: ``missing_text``, ``unknown_role``, ``bad_turns`` or ``bad_record``.
    """
    if entries is None or (isinstance(entries, list) and not entries):
        raise BadRecord("missing_text", "the record has no turns")
    if not isinstance(entries, list):
        raise BadRecord("bad_record", f"the turns are no list: {_shown(entries)}")
    return ordered([_turn(number, entry) for number, entry in enumerate(entries)])


def turns_from_pairs(pairs: Any) -> list[Turn]:
    """The turns of FineVision's ``texts`` column, ``{user, assistant}`` each; raises as ``turns_from``."""
    if not pairs:
        raise BadRecord("missing_text", "the record has no turns")
    if not isinstance(pairs, list):
        raise BadRecord("bad_record", f"the turns are no list: {_shown(pairs)}")
    turns: list[Turn] = []
    for number, pair in enumerate(pairs):
        if pair is not None and not isinstance(pair, Mapping):
            raise BadRecord("bad_record", f"turn {number} is not {{user, assistant}}: {_shown(pair)}")
        for role in ("user", "assistant"):
            text = None if pair is None else pair.get(role)
            if text is None:
                raise BadRecord("missing_text", f"turn {number} of {len(pairs)} has no {role} text")
            turns.append(Turn(role, _string(number, text)))
    return ordered(turns)


def ordered(turns: Sequence[Turn]) -> list[Turn]:
    """The turns, checked to alternate from the user to an answer that is not blank, less blank system texts.

    Raises:
        BadRecord: ``bad_turns`` or ``missing_text``.
    """
    first = next((number for number, turn in enumerate(turns) if turn.role != "system"), len(turns))
    spoken = turns[first:]
    roles: list[Role] = [turn.role for turn in spoken]
    expected: list[Role] = ["user", "assistant"] * (len(spoken) // 2)
    if not spoken or roles != expected:
        raise BadRecord("bad_turns", f"the turns go {', '.join(turn.role for turn in turns)}")
    for number, turn in enumerate(turns):
        if turn.role == "assistant" and not turn.text.strip():
            raise BadRecord("missing_text", f"turn {number} is a blank answer")
    return [*(turn for turn in turns[:first] if turn.text.strip()), *spoken]


def arrange(turns: Sequence[Turn], groups: Sequence[Sequence[Image]]) -> tuple[Part, ...]:
    """The parts of a sample: each picture before the text of its turn, answers trained.

    As many markers as groups: each group goes into the turn that marks it. Fewer: all go before the first
    turn.

    Args:
        turns: In order.
        groups: Pictures that one marker stands for, in the markers' order: one picture, or the frames of a
            video.

    Raises:
        BadRecord: ``missing_image`` where there are more markers than groups.
    """
    counts = [turn.text.count(IMAGE_MARKER) if turn.role == "user" else 0 for turn in turns]
    if sum(counts) > len(groups):
        marked = f"the text has {sum(counts)} {IMAGE_MARKER}"
        raise BadRecord("missing_image", f"{marked}, the record {len(groups)} pictures")
    if sum(counts) < len(groups):
        first = next(number for number, turn in enumerate(turns) if turn.role == "user")
        counts = [len(groups) if number == first else 0 for number in range(len(turns))]
    parts: list[Part] = []
    shown = 0
    for turn, count in zip(turns, counts, strict=True):
        for group in groups[shown : shown + count]:
            parts += group
        shown += count
        text = turn.text.replace(IMAGE_MARKER, "").strip() if turn.role == "user" else turn.text
        parts.append(Text(role=turn.role, text=text, trained=turn.role == "assistant"))
    return tuple(parts)


def pictures(count: int) -> list[list[Image]]:
    """Groups of ``arrange`` for still pictures: the media from 0 on, one each."""
    return [[Image(media=number)] for number in range(count)]


def _turn(number: int, entry: Any) -> Turn:
    if not isinstance(entry, Mapping):
        raise BadRecord("bad_record", f"turn {number} is not {{role, content}}: {_shown(entry)}")
    speaker = _either(number, entry, "role", "from")
    if not isinstance(speaker, str):
        raise BadRecord("bad_record", f"turn {number} does not say who speaks: {_shown(entry)}")
    if speaker.lower() not in _ROLES:
        raise BadRecord("unknown_role", f"turn {number} is by {speaker!r}")
    text = _either(number, entry, "content", "value")
    if text is None:
        raise BadRecord("missing_text", f"turn {number} has no text")
    return Turn(_ROLES[speaker.lower()], _string(number, text))


def _either(number: int, entry: Mapping[str, Any], *names: str) -> Any:
    """The value of whichever field is there and not null."""
    found = [entry[name] for name in names if entry.get(name) is not None]
    if len(found) > 1 and found[0] != found[1] and names[0] == "content":
        raise BadRecord("bad_record", f"turn {number} has two different texts, {' and '.join(names)}")
    return found[0] if found else None


def _string(number: int, text: Any) -> str:
    if not isinstance(text, str):
        raise BadRecord("bad_record", f"the text of turn {number} is no string: {_shown(text)}")
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
