"""An endpoint's side of the store of live sessions: :class:`serve.live.sessions.SessionStore`.

What has changed is sent a few times per second, one call at a time for all sessions, and each event and frame
once. A call that fails, and a store that has been replaced, cost nothing but that all is sent again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Protocol

from casa_core.engine.saved_session import Transcript
from serve.live.state import Kept
from serve.session_table import Stored, Update, Verdict

logger = logging.getLogger("casa.serve")

KEPT_EVERY_S = 0.25
"""Least seconds between two calls: what is younger is lost with the endpoint."""
HEARD_EVERY_S = 5.0
"""Most seconds between two calls of an endpoint that has sessions."""
CLOSED_WITHIN_S = 5.0
"""Seconds that an endpoint which leaves tries to keep its last sessions."""
AGAIN_AFTER_S = 1.0
"""Seconds after a call that failed."""
LEFT_AFTER_S = 30.0
"""Seconds after which a session that another endpoint has taken, and not asked for here, ends here."""


class StoreCalls(Protocol):
    """The store, wherever it runs: :class:`serve.session_table.SessionTable` by calls."""

    async def keep(
        self, holder: str, held: Mapping[str, int], updates: Sequence[Update], ended: Mapping[str, int]
    ) -> Verdict:
        """As the table's."""
        ...

    async def take(self, session_id: str, taker: str, new: bool = False) -> Stored | None:
        """As the table's."""
        ...


@dataclass(slots=True)
class _Sent:
    """What the store has of a session: the latest event's number, and the times of its frames."""

    event: int | None = None
    frames: set[float] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Rest:
    """A session without its events and pictures: what is sent anew each time. ``waiting`` has the times of
    frames without words."""

    kept: Kept
    waiting: tuple[float, ...]


class SessionKeeper:
    """Keeps the sessions of one endpoint, and takes those of others.

    Args:
        name: The endpoint's.
        store: Shared by all endpoints.
        fetch: Asks an endpoint, by its name, for a session that was taken from it, and says whether its
            events are to be read; ``None`` where the endpoint is gone. It raises ``LookupError`` where it
            lives and has no such session.
        end_stream: Ends the stream of an endpoint that is gone, by its replica and its name there.

    Attributes:
        on_taken: Called with the id of a session that another endpoint has had for a while, and this one too.
    """

    def __init__(
        self,
        name: str,
        store: StoreCalls,
        fetch: Callable[[str, str, bool], Awaitable[Kept | None]],
        end_stream: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self.name = name
        self.on_taken: Callable[[str], object] = lambda session_id: None
        self._store, self._fetch, self._end_stream = store, fetch, end_stream
        self._kept: dict[str, Callable[[], Kept | None]] = {}
        self._sent: dict[str, _Sent] = {}
        self._changed: set[str] = set()
        self._ended: dict[str, int] = {}  # with the term of each
        self._terms: dict[str, int] = {}  # of those that were taken
        self._taken: dict[str, float] = {}  # when it was first heard that another endpoint has it
        self._wake = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None

    def keep(self, session_id: str, kept: Callable[[], Kept | None]) -> None:
        """As ``SessionStore.keep``; what it has come to is asked for when it is sent."""
        self._kept[session_id] = kept
        self._changed.add(session_id)
        self._ended.pop(session_id, None)
        self._send_soon()

    def drop(self, session_id: str) -> None:
        """As ``SessionStore.drop``."""
        self._ended[session_id] = self._terms.get(session_id, 0)
        self.release(session_id)
        self._send_soon()

    def release(self, session_id: str) -> None:
        """As ``SessionStore.release``."""
        for known in (self._kept, self._sent, self._taken, self._terms):
            known.pop(session_id, None)
        self._changed.discard(session_id)

    async def take(self, session_id: str, *, to_read: bool) -> Kept | None:
        """As ``SessionStore.take``: from the endpoint that has it, or from the store where that is gone."""
        stored = await self._store.take(session_id, self.name)
        kept = None if stored is None or not stored.state else _restored(stored)
        # One that is so new that nothing is known of it is at the endpoint that opened it.
        holder = _opened_by(session_id) if stored is None else stored.holder
        try:
            handed = await self._fetch(holder, session_id, to_read) if holder else None
        except LookupError:
            handed = kept = None
        if handed is not None and stored is None:
            stored = await self._store.take(session_id, self.name, new=True)
        if stored is None:
            return None
        self._terms[session_id] = stored.term
        if handed is None and kept is None:
            self.drop(session_id)
        elif handed is None and kept is not None and kept.place is not None:
            await self._end_stream(*kept.place)
        return handed or kept

    async def close(self) -> None:
        """As ``SessionStore.close``."""
        if self._sending is not None:
            self._sending.cancel()
        try:
            async with asyncio.timeout(CLOSED_WITHIN_S):
                await self._send()
        except Exception as error:  # the store may be gone with everything else
            logger.warning("live sessions could not be kept (%s)", type(error).__name__)

    def _send_soon(self) -> None:
        self._wake.set()
        if self._sending is None:  # not as a part of the request that is being served
            self._sending = asyncio.get_running_loop().create_task(self._keep_sending(), context=Context())

    async def _keep_sending(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), HEARD_EVERY_S)
            self._wake.clear()
            if not self._kept and not self._ended:
                continue
            try:
                await self._send()
            except Exception as error:
                logger.warning("live sessions could not be kept (%s); again", type(error).__name__)
                self._sent.clear()
                self._changed.update(self._kept)
                self._wake.set()
                await asyncio.sleep(AGAIN_AFTER_S)
            await asyncio.sleep(KEPT_EVERY_S)

    async def _send(self) -> None:
        changed, self._changed = self._changed, set()
        updates = [update for one in changed if (update := self._checked_update(one)) is not None]
        ended, self._ended = self._ended, {}
        try:
            held = {one: self._terms.get(one, 0) for one in self._kept}
            verdict = await self._store.keep(self.name, held, updates, ended)
        except BaseException:
            self._ended = {one: term for one, term in ended.items() if one not in self._kept} | self._ended
            raise
        for session_id in self._kept.keys() & set(verdict.unknown):
            self._sent.pop(session_id, None)
            self._changed.add(session_id)
        self._note_taken(self._kept.keys() & set(verdict.taken))
        if self._changed:
            self._wake.set()

    def _checked_update(self, session_id: str) -> Update | None:
        try:
            return self._update(session_id)
        except Exception:  # the other sessions are kept all the same
            logger.exception("session %s could not be kept", session_id)
            return None

    def _update(self, session_id: str) -> Update | None:
        """What has become of a session since the last update; ``None`` where it cannot be had now."""
        if (kept := self._kept[session_id]()) is None:
            self._changed.add(session_id)
            return None
        run, stream, frames = kept.run, kept.stream, dict[float, bytes]()
        if isinstance(stream, Transcript):
            frames = {at: frame for at, frame in stream.waiting if frame is not None}
            rest = _Rest(kept, tuple(frames))
            if stream.frame is not None:
                frames[stream.timestamp] = stream.frame
            stream = replace(stream, frame=None, waiting=())
        else:
            rest = _Rest(kept, ())
        sent = self._sent.get(session_id, _Sent())
        new = run.event - (sent.event or 0)
        self._sent[session_id] = _Sent(run.event, set(frames))
        return Update(
            session_id=session_id,
            since=sent.event,
            event=run.event,
            events=tuple(json.dumps(event).encode() for event in run.events[max(0, len(run.events) - new) :]),
            frames={at: frame for at, frame in frames.items() if at not in sent.frames},
            needed=tuple(frames),
            state=pickle.dumps(replace(rest, kept=replace(kept, run=replace(run, events=()), stream=stream))),
        )

    def _note_taken(self, taken: Iterable[str]) -> None:
        """A session that another endpoint takes is asked for here; if it is not, it ends after a while."""
        now = time.monotonic()
        self._taken = {one: self._taken.get(one, now) for one in taken}
        for session_id, since in list(self._taken.items()):
            if now > since + LEFT_AFTER_S:
                self.on_taken(session_id)


def _opened_by(session_id: str) -> str:
    """The endpoint that opened a session, by its id."""
    parts = session_id.split("-")
    return parts[1] if len(parts) == 3 else ""


def _restored(stored: Stored) -> Kept:
    """A session as it was kept."""
    rest: _Rest = pickle.loads(stored.state)
    run = replace(rest.kept.run, events=tuple(json.loads(event) for event in stored.events))
    stream = rest.kept.stream
    if isinstance(stream, Transcript):
        waiting = tuple((at, stored.frames[at]) for at in rest.waiting)
        stream = replace(stream, frame=stored.frames.get(stream.timestamp), waiting=waiting)
    return replace(rest.kept, run=run, stream=stream)
