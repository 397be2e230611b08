"""Live sessions outside of the endpoints that hold them, so that another one can go on with them.

An endpoint sends what has changed: new events, new frames, and the rest as bytes that only endpoints read.
Each time that a session is taken its term begins anew, so that what was sent before is known by its term.
The table runs in a process of its own, which needs nothing of this project.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What has become of a session since its last update.

    Attributes:
        since: Number of the latest event that was sent before; ``None`` where all is sent.
        event: Number of the latest event.
        events: Those after ``since`` that are kept, encoded.
        frames: Encoded pictures that were not sent before, by their time in the stream.
        needed: Times of all pictures that are needed.
        state: The rest.
    """

    session_id: str
    since: int | None
    event: int
    events: tuple[bytes, ...]
    frames: dict[float, bytes]
    needed: tuple[float, ...]
    state: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the table answers to updates.

    Attributes:
        unknown: Sessions of which it needs all again.
        taken: Sessions that another endpoint has taken.
    """

    unknown: tuple[str, ...]
    taken: tuple[str, ...]


@dataclass(slots=True)
class Stored:
    """A session as it is stored: see :class:`Update`.

    Attributes:
        holder: The endpoint that has it.
        heard: When that was last said.
        term: How often it was taken.
        event: Number of the latest event.
    """

    holder: str
    heard: float
    term: int = 0
    state: bytes = b""
    event: int = 0
    events: deque[bytes] = field(default_factory=deque)
    frames: dict[float, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.state) + sum(map(len, self.events)) + sum(map(len, self.frames.values()))


class SessionTable:
    """Sessions by their ids, each with the endpoint that holds it.

    Args:
        most_bytes: Bound of all together; the one that has not changed for longest makes room.
        kept_events: Events of one session.
        seconds: How long a session is kept of which its holder says nothing.
        clock: Seconds, for tests.
    """

    def __init__(
        self,
        most_bytes: int,
        kept_events: int,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_bytes, self._kept_events, self._seconds = most_bytes, kept_events, seconds
        self._clock = clock
        self._sessions: OrderedDict[str, Stored] = OrderedDict()  # the latest that changed last
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def bytes_held(self) -> int:
        """Bytes of all sessions together."""
        return self._bytes

    def keep(
        self, holder: str, held: Mapping[str, int], updates: Sequence[Update], ended: Mapping[str, int]
    ) -> Verdict:
        """Keep what an endpoint says of its sessions.

        Args:
            holder: The endpoint's name.
            held: All its sessions, with the term of each.
            updates: Those that have changed.
            ended: Those that have ended; one that has a later term is left as it is.
        """
        now = self._clock()
        for session_id, term in ended.items():
            if (stored := self._sessions.get(session_id)) is not None and stored.term <= term:
                self._remove(session_id)
        known = [self._apply(holder, held[one.session_id], one, now) for one in updates]
        unknown = {one.session_id for one, fits in zip(updates, known, strict=True) if not fits}
        taken = set()
        for session_id, term in held.items():
            stored = self._sessions.get(session_id)
            if stored is None or stored.term < term:
                unknown.add(session_id)
            elif stored.term > term:
                taken.add(session_id)
            else:
                stored.heard = now
        self._forget_old(now)
        return Verdict(tuple(unknown - taken), tuple(taken))

    def take(self, session_id: str, taker: str, new: bool = False) -> Stored | None:
        """Give a session to an endpoint, for its next term.

        Args:
            new: Whether it exists even if nothing is known of it.

        Returns:
            What is known of it, with the ``holder`` that had it.
        """
        self._forget_old(now := self._clock())
        if new and session_id not in self._sessions:
            self._sessions[session_id] = Stored(taker, now)
        if (stored := self._sessions.get(session_id)) is None:
            return None
        before = stored.holder
        stored.holder, stored.heard, stored.term = taker, now, stored.term + 1
        return replace(stored, holder=before, events=stored.events.copy(), frames=dict(stored.frames))

    def _apply(self, holder: str, term: int, update: Update, now: float) -> bool:
        """Whether an update fits to what is known."""
        known = self._sessions.get(update.session_id)
        if known is not None and known.term > term:
            return True  # its holder learns that it is taken
        if update.since is None:
            known = None
        elif known is None or known.term != term or known.event != update.since:
            return False
        events = [*(known.events if known else ()), *update.events]
        frames = {**(known.frames if known else {}), **update.frames}
        self._remove(update.session_id)
        stored = Stored(
            holder=holder,
            heard=now,
            term=term,
            state=update.state,
            event=update.event,
            events=deque(events, self._kept_events),
            frames={one: frames[one] for one in update.needed if one in frames},
        )
        self._sessions[update.session_id] = stored
        self._bytes += stored.size
        while self._bytes > self._most_bytes and len(self._sessions) > 1:
            self._remove(next(iter(self._sessions)))
        return True

    def _remove(self, session_id: str) -> None:
        if (stored := self._sessions.pop(session_id, None)) is not None:
            self._bytes -= stored.size

    def _forget_old(self, now: float) -> None:
        for session_id in [one for one, it in self._sessions.items() if it.heard < now - self._seconds]:
            self._remove(session_id)
