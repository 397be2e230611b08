"""One form of accents and quotation marks, and the words of a text. Pure functions."""

from __future__ import annotations

import unicodedata

_SINGLE = "\u2018\u2019\u201a\u201b\u02bc\uff07"  # curly, low, reversed; modifier letter; full width
_DOUBLE = "\u201c\u201d\u201e\u201f\uff02"
_QUOTES = str.maketrans(dict.fromkeys(_SINGLE, "'") | dict.fromkeys(_DOUBLE, '"'))
_BETWEEN_LETTERS = "'-"
_BETWEEN_DIGITS = ".,:"


def same_characters(text: str) -> str:
    """Text with composed accents (Unicode NFC) and straight quotation marks."""
    return unicodedata.normalize("NFC", text).translate(_QUOTES)


def words(text: str) -> list[str]:
    """The words of a text, in lower case: ``"A red, round ball!"`` → ``["a", "red", "round", "ball"]``.

    A word is a run of letters, marks and digits. An apostrophe or a hyphen between two of them belongs to it
    (``don't``, ``well-known``), and so does a point, comma or colon between two digits (``3.5``, ``1,000``,
    ``12:30``); everything else only separates words.
    """
    folded = same_characters(text).lower()
    padded = f" {folded} "
    kept = [char if _belongs(padded[at], char, padded[at + 2]) else " " for at, char in enumerate(folded)]
    return "".join(kept).split()


def _belongs(before: str, char: str, after: str) -> bool:
    if _is_of_word(char):
        return True
    if char in _BETWEEN_LETTERS:
        return _is_of_word(before) and _is_of_word(after)
    return char in _BETWEEN_DIGITS and before.isdigit() and after.isdigit()


def _is_of_word(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"
