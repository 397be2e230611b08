"""The one arrangement of turns: who writes and shows what, in order → the parts of a sample.

Corpus readers, ``CasaProcessor`` and the endpoint all call :func:`arrange`, so that equal content becomes
equal token ids in training, evaluation and serving:

* Texts and pictures of a turn stay in their order.
* Neighbouring turns of one role are one turn.
* Neighbouring texts, of one turn or of turns that became one, are joined by a line break; blank ones are left
  out, and so are blank system turns.
* A user's text loses the white space at both ends, beside pictures too; answers and system texts keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from casa_core.types import Image, Part, Role, Text

ROLES: dict[str, Role] = {
    **{"system": "system", "developer": "system"},
    **{"user": "user", "human": "user"},
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "ai"), "assistant"),
}
"""Names of roles, in small letters, as chat calls and corpora have them."""

Content = Sequence[str | Image]
"""What a turn holds, in order."""


def role_of(name: object) -> Role | None:
    """The role of a turn by its name in any letter case; None for every other name, a tool's above all."""
    return ROLES.get(name.strip().lower()) if isinstance(name, str) else None


def arrange(turns: Iterable[tuple[Role, Content]]) -> tuple[Part, ...]:
    """The parts of a conversation; the assistant's texts are trained.

    Args:
        turns: In order. Images get the role of their turn.
    """
    parts: list[Part] = []
    heard = [turn for turn in turns if turn[0] != "system" or not is_blank(turn[1])]
    by_role: groupby[Role, tuple[Role, Content]] = groupby(heard, key=lambda turn: turn[0])
    for role, run in by_role:
        content = [piece for _, own in run for piece in own]
        trained = role == "assistant"
        if is_blank(content):
            parts.append(Text(role=role, text="", trained=trained))
            continue
        for is_image, pieces in groupby(content, key=lambda piece: isinstance(piece, Image)):
            if is_image:
                parts += [replace(piece, role=role) for piece in pieces if isinstance(piece, Image)]
                continue
            texts = [piece.strip() if role == "user" else piece for piece in pieces if isinstance(piece, str)]
            if kept := [text for text in texts if text.strip()]:
                parts.append(Text(role=role, text="\n".join(kept), trained=trained))
    return tuple(parts)


def is_blank(content: Content) -> bool:
    """Whether it holds neither an image nor anything but white space."""
    return all(isinstance(piece, str) and not piece.strip() for piece in content)
