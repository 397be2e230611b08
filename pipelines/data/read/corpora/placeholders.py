"""Placeholders of pictures and videos in a user's texts: which there are, and which picture each stands for.

Three kinds of spelling are known, in any letter case. Those of the first kind that a record has are its
placeholders; the others are then words.

1. *plain*: ``<image>``, ``<|image|>``, ``<|image_pad|>``, ``<ImageHere>``, ``<video>``. The n-th one stands
   for the n-th picture.
2. *numbered*: ``<image_1>``, ``<image 1>``, ``<img1>``, ``<|image_1|>``, ``[Image 1]``, ``<video_1>``. Number
   n stands for the n-th picture, counted from 0 where a 0 occurs; named again it is a word.
3. *loose*: ``<img>``, ``<vid>``, ``[IMAGE]``, ``[IMG]``, ``[VIDEO]``. As plain ones.

Start and end tokens of a model (``<|vision_start|>…<|vision_end|>``, ``<Img>…</Img>``) belong to the
placeholder between them. A backslash before a placeholder or backticks around it make it a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.data.read.source.base import BadRecord

Kind = Literal["image", "video"]
ESCAPE = "\\"
_PLAIN, _NUMBERED, _LOOSE = range(3)

_NUMBER = r"[\s_:#-]{0,2}(?P<%s>\d{1,3})"
_ANGLED = (
    r"<\|?(?P<name>image|img|video|vid)(?:(?P<meant>[\s_-]?(?:here|pad|placeholder|token))|"
    rf"{_NUMBER % 'angled'})?\s*(?:\|?>|/>)"
)
# In square brackets small letters are code or Markdown: model([image]), [image](a.png), ![Image](a.png).
_SQUARE = rf"(?<![!\w])\[(?P<square>(?-i:IMAGE|IMG|VIDEO|Image|Video))(?:{_NUMBER % 'squared'})?\](?!\()"
_MARK = rf"(?:{_ANGLED}|{_SQUARE})"
_PLACEHOLDER = re.compile(
    rf"(?P<code>`)?(?P<escaped>\\)?(?:<\|vision_start\|>|<im_start>)?{_MARK}(?:<\|vision_end\|>|<im_end>)?(?(code)`)",
    re.IGNORECASE,
)
_PAIR = re.compile(
    r"(?<!\\)(?P<open><(image|img|video|vid)>)(?P<inner>(?:[^<>\n]|<[^<>\n]*>)*?)</\2>", re.IGNORECASE
)
_NOTHING = frozenset({"", "./"})


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A placeholder: its text as written, what it stands for, its kind of spelling, and its number if any."""

    text: str
    kind: Kind
    spelling: int
    number: int | None


def split_at_placeholders(text: str) -> list[str | Placeholder]:
    """A user's text as texts and placeholders in turn; escapes are resolved.

    Raises:
        BadRecord: ``missing_image`` where a pair of tags holds a picture's name.
    """
    text = _PAIR.sub(_unwrapped, text)
    pieces: list[str | Placeholder] = []
    words, at = "", 0
    for found in _PLACEHOLDER.finditer(text):
        words += text[at : found.start()]
        at = found.end()
        if found["escaped"] or found["code"]:
            words += found[0].replace(ESCAPE, "", 1)
            continue
        pieces += [words, _placeholder(found)]
        words = ""
    return [*pieces, words + text[at:]]


def groups_meant(found: Sequence[Placeholder], count: int, kind: Kind) -> list[int | None]:
    """For each placeholder of a record the group of pictures it stands for; None where it is a word.

    Args:
        found: In order.
        count: Groups of the record: its pictures, or its video.
        kind: What these are. ``<image>`` may stand for a video, ``<video>`` for no picture.

    Raises:
        BadRecord: ``missing_image`` for a placeholder beyond the last group, ``missing_video`` for one of a
            video beside pictures, ``unplaced_image`` for groups without one.
    """
    if not found:
        return []
    spelling = min(mark.spelling for mark in found)
    own = [mark for mark in found if mark.spelling == spelling]
    for mark in found:
        if kind == "image" and mark.kind == "video" and mark.spelling <= max(spelling, _NUMBERED):
            raise BadRecord(
                "missing_video", f"the user's texts have {mark.text}, the record has no video; {_hint(mark)}"
            )
    base = 0 if any(mark.number == 0 for mark in found) else 1
    for mark in found:
        if mark.number is not None and mark.number - base >= count:
            raise BadRecord(
                "missing_image",
                f"the user's texts have {mark.text}, the record has {count} pictures, counted from {base}; "
                f"{_hint(mark)}",
            )
    meant: list[int | None] = []
    marked = 0
    for mark in found:
        group = None
        if mark.spelling == spelling:
            group = marked if mark.number is None else mark.number - base
            group = None if group in meant else group
        meant.append(group)
        marked += group is not None
    if marked > count:
        raise BadRecord(
            "missing_image",
            f"the user's texts have {marked} {own[0].text}, the record has {count} pictures; {_hint(own[0])}",
        )
    if marked < count:
        raise BadRecord(
            "unplaced_image",
            f"the record has {count} pictures, the user's texts mark {marked} by {own[0].text}: mark all or "
            f"none; {_hint(own[0])}",
        )
    return meant


def _hint(mark: Placeholder) -> str:
    return f"write {ESCAPE}{mark.text} where the word itself is meant"


def _placeholder(found: re.Match[str]) -> Placeholder:
    name = (found["name"] or found["square"]).lower()
    number = found["angled"] or found["squared"]
    plain = found["meant"] or (found["name"] and name in ("image", "video"))
    spelling = _NUMBERED if number else _PLAIN if plain else _LOOSE
    kind = "image" if name.startswith("im") else "video"
    return Placeholder(found[0], kind, spelling, int(number) if number else None)


def _unwrapped(pair: re.Match[str]) -> str:
    """``<img></img>`` → ``<img>``, ``<Img><ImageHere></Img>`` → ``<ImageHere>``."""
    inner = pair["inner"].strip()
    if inner in _NOTHING:
        return pair["open"]
    if _PLACEHOLDER.fullmatch(inner):
        return inner
    raise BadRecord(
        "missing_image",
        f"the user's text has {pair[0][:80]}: pictures are named in image or images, and their place is "
        f"marked by <image>; write {ESCAPE}{pair['open']} where the words themselves are meant",
    )
