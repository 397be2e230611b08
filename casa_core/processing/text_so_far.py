"""The text of an answer that grows token by token, of which each step decodes only the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from casa_core.processing.processor import CasaProcessor


@dataclass(slots=True)
class TextSoFar:
    """An answer's tokens, and the part of its text that further tokens leave as it is.

    A token's text depends on its neighbours: a character may have several tokens, and some tokenizers drop a
    space at the beginning. So the last tokens are decoded together with those before them, until they end
    with a whole character.

    Attributes:
        processor: The checkpoint's own.
        stops: Strings that end the answer.
        ids: Its tokens.
        settled: Its text without spaces at its beginning and without those of its last tokens that may still
            change; cut before the first stop string.
        stopped: Whether a stop string ended it.
    """

    processor: CasaProcessor
    stops: Sequence[str] = ()
    ids: list[int] = field(default_factory=list)
    settled: str = ""
    stopped: bool = False
    _before: int = 0
    _decoded: int = 0

    def add(self, token: int) -> str:
        """Append a token, and return all the text that may be shown: what a stop string may still cut off, or
        a later token strip or change, is not part of it."""
        self.ids.append(token)
        new = self._new_text()
        searched = max(len(self.settled) - max(map(len, self.stops), default=0), 0)
        self.settled = (self.settled + new) if self.settled else new.lstrip()
        ends = [at for stop in self.stops if (at := self.settled.find(stop, searched)) >= 0]
        if ends:
            self.stopped = True
            self.settled = self.settled[: min(ends)]
            return self.settled
        return self.settled[: len(self.settled) - self._held_back()].rstrip()

    def _new_text(self) -> str:
        """The text of the tokens since the last whole character; empty in the middle of one."""
        known = self.processor.decode_piece(self.ids[self._before : self._decoded])
        both = self.processor.decode_piece(self.ids[self._before :])
        end = len(self.ids)
        if both.endswith("\ufffd"):
            # Bytes that never become a character are given up after as many as the longest has, and a few;
            # but not the last ones, which may be the beginning of a character.
            if end - self._decoded < _GIVEN_UP:
                return ""
            end = next((at for at in range(end - _LONGEST_CHARACTER + 1, end) if self._parts(at, both)), end)
            both = self.processor.decode_piece(self.ids[self._before : end])
        self._before, self._decoded = self._decoded, end
        return both[len(known) :]

    def _parts(self, at: int, whole: str) -> bool:
        """Whether the text falls apart before token ``at`` without a change: no character lies across."""
        piece = self.processor.decode_piece
        return piece(self.ids[self._before : at]) + piece(self.ids[at:]) == whole

    def _held_back(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = min(max(map(len, self.stops), default=0) - 1, len(self.settled))
        return next((n for n in range(longest, 0, -1) if self._begins_stop(n)), 0)

    def _begins_stop(self, characters: int) -> bool:
        end = self.settled[-characters:]
        return any(len(stop) > characters and stop.startswith(end) for stop in self.stops)


_LONGEST_CHARACTER = 4  # tokens: it has so many bytes in UTF-8
_GIVEN_UP = 8
