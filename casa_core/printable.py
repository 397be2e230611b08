"""Text of a corpus, a model or a client on its way to a terminal."""

from __future__ import annotations

import re

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
