"""What a judge is asked about two commentaries, and how its reply is read. Pure functions."""

from __future__ import annotations

import re
from typing import Literal

Verdict = Literal["A", "B", "tie", ""]
"""The better commentary; empty where a reply says none of the three."""

ALIGNED = (
    "You are an expert in video commentary. Your task is to review two commentaries (Commentary A and "
    "Commentary B), and select the one that better aligns with the human commentary. "
    "You should consider the criteria:\n"
    "1. Semantic Alignment: The commentary should convey the same meaning, details, and key points as the "
    "human commentary.\n"
    "If the above criteria is not enough to judge, then consider:\n"
    "2. Stylistic Consistency: The commentary should maintain a tone, word choice, and structure similar to "
    "the human commentary.\n"
    "\n---Commentary A---\n{a}\n----------\n\n---Commentary B---\n{b}\n----------\n"
    "\n---Human Commentary---\n{human}\n----------\n"
    '\nYour response should be "Commentary A is better aligned with the human commentary" or "Commentary B '
    'is better aligned with the human commentary".\n'
)
"""LiveCC's wording, where another model's commentary is the baseline."""

BETTER = (
    "Two live commentaries of the same part of a sports broadcast follow. Choose the one that a viewer would "
    "rather hear: specific about what happens, coherent from beginning to end, and natural as speech.\n"
    "\n---Commentary A---\n{a}\n----------\n\n---Commentary B---\n{b}\n----------\n"
    '\nYour response should be "Commentary A is better", "Commentary B is better" or "Tie".\n'
)
"""This project's wording, where the baseline is what the person said, which then cannot be the measure."""

_ALONE = re.compile(r"\W*([AB])\W*", re.IGNORECASE)
_BETTER = re.compile(
    r"\bcommentary\s+([AB])\b\W*\s+(?:is|was)\s+(?:(?!not\b)\w+\s+)?(?:better|closer)", re.IGNORECASE
)
_NAMED = re.compile(r"\bcommentary\s+([AB])\b", re.IGNORECASE)
_TIE = re.compile(r"\b(?:tie|tied|equal|equally|neither|both)\b", re.IGNORECASE)


def verdict(reply: str) -> Verdict:
    """Which commentary a reply prefers: by its letter alone, by "commentary A is better", by the only one
    that it names, or a tie by a word such as *tie* or *equally*; otherwise none, and none is guessed."""
    if alone := _ALONE.fullmatch(reply):
        return _letter({alone[1].upper()})
    better = {letter.upper() for letter in _BETTER.findall(reply)}
    if len(better) == 1:
        return _letter(better)
    if _TIE.search(reply):
        return "tie"
    named = {letter.upper() for letter in _NAMED.findall(reply)}
    denied = re.search(r"\bnot\b|n't\b", reply)
    return _letter(named) if len(named) == 1 and not better and not denied else ""


def _letter(letters: set[str]) -> Verdict:
    return "A" if letters == {"A"} else "B"
