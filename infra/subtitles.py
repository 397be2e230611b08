"""Captions as subtitle files: words that follow one another closely are one cue.

The live page writes the same (``serve/web/subtitles.js``); one test holds both to the same files.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

GAP_S = 0.8
"""Silence after which the next words start a new cue: at 2 fps, a frame that nothing is said about."""
LONGEST_WORDS = 12
SHOWN_S = 2.0
"""How long the last words of a cue stand, seconds."""

Caption = tuple[float, str]
"""Seconds in the video, and words."""


@dataclass(slots=True)
class _Cue:
    start: float
    until: float
    text: str

    def takes(self, caption: Caption) -> bool:
        """Whether the words belong to it."""
        time, text = caption
        return time - self.until <= GAP_S and len(self.text.split()) + len(text.split()) <= LONGEST_WORDS


def web_vtt(captions: Sequence[Caption]) -> str:
    """Captions in order as a WebVTT file."""
    parts = [
        f"{_stamp(start, '.')} --> {_stamp(end, '.')}\n{html.escape(text, quote=False)}\n"
        for start, end, text in cues(captions)
    ]
    return "WEBVTT\n\n" + "\n".join(parts)


def sub_rip(captions: Sequence[Caption]) -> str:
    """Captions in order as an SRT file."""
    parts = [
        f"{number}\n{_stamp(start, ',')} --> {_stamp(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(cues(captions), 1)
    ]
    return "\n".join(parts)


FORMATS: dict[str, Callable[[Sequence[Caption]], str]] = {".vtt": web_vtt, ".srt": sub_rip}
"""Writers by the endings of files."""


def cues(captions: Sequence[Caption]) -> list[tuple[float, float, str]]:
    """Start, end and words of each cue."""
    found: list[_Cue] = []
    for time, words in captions:
        text = " ".join(words.split())  # an empty line would end the cue
        if found and found[-1].takes((time, text)):
            found[-1].text += f" {text}"
            found[-1].until = time
        else:
            found.append(_Cue(time, time, text))
    starts = [*(cue.start for cue in found), math.inf][1:]
    return [
        (cue.start, min(cue.until + SHOWN_S, next_start), cue.text)
        for cue, next_start in zip(found, starts, strict=True)
    ]


def _stamp(seconds: float, point: str) -> str:
    minutes, ms = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{ms // 1000:02}{point}{ms % 1000:03}"
