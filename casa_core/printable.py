"""Text of a corpus, a model or a client on its way to a terminal."""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from typing import Any

_CONTROLS = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
_COLOUR = "\x1b\\[[0-9;]*m"
_ALL = re.compile(_CONTROLS)
_BUT_COLOURS = re.compile(f"(?!{_COLOUR}){_CONTROLS}")


def printable(text: str, *, colours: bool = False) -> str:
    """The text with its control characters spelled out (ESC as ``\\u001b``), tabs and line breaks kept.

    A terminal would obey them: move the cursor, set its title, hide or reverse what was written. JSON keeps
    its content.

    Args:
        colours: Keep the sequences that only set colours, which programs' logs are full of.
    """
    pattern = _BUT_COLOURS if colours else _ALL
    return pattern.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_ASCII = {
    **dict(zip("→←…·✓✗○▣⏎", ("->", "<-", "...", "|", "v", "x", "o", "[]", "\\n"), strict=True)),
    **dict(zip("\u2228\u00d7\u2013\u2014\u2018\u2019“”", "vx--''\"\"", strict=True)),
    **dict(zip("█░─━│├└╭╮╰╯", "#.--||`++++", strict=True)),
    **dict(zip("⊕±≥≤≈", ("(+)", "+-", ">=", "<=", "~"), strict=True)),
}
"""Spellings of what the commands print; letters with accents lose these."""


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_letters, error.object[error.start : error.end])), error.end


def _letters(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _ASCII.get(character) or plain or "?"


codecs.register_error("casa.spelled", _spelled)


def spell_out(stream: Any) -> None:
    """Lets a stream of another encoding than Unicode's write what it can: ``->`` for an arrow, ``?`` for the
    unknown. Without this, one arrow ends a program there."""
    if isinstance(stream, io.TextIOWrapper) and not is_unicode(stream):
        stream.reconfigure(errors="casa.spelled")


def is_unicode(stream: Any) -> bool:
    """Whether a stream's encoding has every character."""
    name = getattr(stream, "encoding", None) or "utf-8"
    return codecs.lookup(name).name.startswith("utf")
