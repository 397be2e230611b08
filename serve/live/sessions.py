"""The live sessions of one replica: as many as it has places for, found again by their ids."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from starlette.datastructures import State

from casa_core.engine.requests import StreamSettings
from serve.api.errors import ApiError, bad_request, check_model, too_many
from serve.api.settings import ServeSettings
from serve.calls import EngineCalls, OpenStream
from serve.live.account import check_query
from serve.live.messages import SessionStart
from serve.live.run import LiveRun
from serve.live.state import Kept


class SessionStore(Protocol):
    """Where sessions are kept so that another process can continue them."""

    def keep(self, session_id: str, kept: Callable[[], Kept | None]) -> None:
        """Keep what a session has come to, now or soon; called after each of its changes.

        Args:
            kept: Gives it; ``None`` where it cannot be had at that moment.
        """
        ...

    def drop(self, session_id: str) -> None:
        """Forget a session that has ended."""
        ...

    def release(self, session_id: str) -> None:
        """Keep no more of a session that another process has taken."""
        ...

    async def take(self, session_id: str, *, to_read: bool) -> Kept | None:
        """Take a session that another process has or had; `None` if there is none, or a third one took it.

        Args:
            to_read: Whether a connection is to read its events, in place of the one that does.
        """
        ...

    async def close(self) -> None:
        """Return once all is kept."""
        ...


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a session is: the name of its API key, empty without one, and how many the key may have."""

    name: str = ""
    most: int | None = None

    @classmethod
    def of(cls, state: State) -> Owner:
        """The owner of a request or a connection, by what the middleware noted in its state."""
        return cls(getattr(state, "key", ""), getattr(state, "key_sessions", None))


NOBODY = Owner()


class LiveSessions:
    """Opens, finds and ends the live sessions of one replica; used from its event loop only.

    A session whose connection was lost has its place for `limits.resume_seconds`, unless a new one needs it.

    Args:
        store: Where sessions are kept for other processes; by default nowhere.
        name: This process's, for the ids of its sessions (:class:`serve.routing.EndpointRouter`).
    """

    def __init__(
        self, client: EngineCalls, settings: ServeSettings, store: SessionStore | None = None, name: str = ""
    ) -> None:
        self.settings = settings
        self._prefix = f"live-{name}-" if name else "live-"
        self._client = client
        self._store = store
        self._running: dict[str, LiveRun] = {}
        self._over: dict[str, LiveRun] = {}
        self._moving: dict[str, asyncio.Event] = {}  # set once the session has come or gone, or was not found
        self._opening: Counter[str] = Counter()  # by owner
        self._closing = False

    @property
    def open(self) -> int:
        """Sessions that have not ended."""
        return len(self._running) + self._opening.total()

    @property
    def full(self) -> bool:
        """Whether there is no place for a new one."""
        return self.open >= self.settings.limits.sessions and self._longest_left() is None

    def check(self) -> None:
        """Refuse a session for which there is no place now.

        Raises:
            ApiError: 429.
        """
        if self.full:
            message = f"{self.open} live sessions are open, the most this server keeps. Try again later."
            raise too_many(message, "too_many_sessions")

    async def start(self, asked: SessionStart, owner: Owner = NOBODY) -> LiveRun:
        """Open a session.

        Raises:
            ApiError: What is asked for is refused, or there is no place, or the owner's key has its share.
            CasaError: The engine refuses it.
        """
        stream = self._stream_settings(asked)
        self._make_place(owner)
        self._opening[owner.name] += 1
        try:
            session = await self._client.open_session(stream)
        finally:
            self._opening[owner.name] -= 1
        run = self._run(f"{self._prefix}{secrets.token_hex(16)}", session, stream)
        run.owner = owner.name
        run.start()
        return run

    async def find(self, session_id: str, *, to_read: bool = False) -> LiveRun:
        """A session by its id, here or in another process, which then has it no more; one that has ended here
        is found for `limits.resume_seconds` more.

        Args:
            to_read: Whether its events are to be read.

        Raises:
            ApiError: 404.
        """
        await self._until_settled(session_id)
        run = self._running.get(session_id) or self._over.get(session_id)
        run = run or await self._take(session_id, to_read)
        if run is None:
            message = "There is no live session of this id: it has ended, or never began. Open a new one."
            raise ApiError(404, message, code="session_not_found", param="session_id")
        return run

    async def hand_over(self, session_id: str, *, to_read: bool) -> Kept | None:
        """End a session here for a process that has taken it; ``None`` if it is not here."""
        await self._until_settled(session_id)
        if (run := self._running.get(session_id)) is None:
            return None
        with self._settling(session_id):
            return await run.leave(taken_over=to_read)

    async def close(self) -> None:
        """End all sessions here; those that are kept in a store go on elsewhere."""
        self._closing, runs = True, list(self._running.values())
        if self._store is None:
            for run in runs:
                run.close()
            return
        left = await asyncio.gather(*(run.leave() for run in runs), return_exceptions=True)
        for run, kept in zip(runs, left, strict=True):
            if isinstance(kept, Kept):
                self._store.keep(run.id, lambda kept=kept: kept)
        await self._store.close()

    async def _take(self, session_id: str, to_read: bool) -> LiveRun | None:
        """A session of another process, if there is one."""
        if self._store is None:
            return None
        with self._settling(session_id):
            kept = await self._store.take(session_id, to_read=to_read)
            if kept is None:
                return None
            try:
                session = await self._client.open_session(kept.run.stream, kept.stream)
            except BaseException:
                self._store.release(session_id)
                raise
            run = self._run(session_id, session, kept.run.stream)
            run.resume(kept.run)
            return run

    async def _until_settled(self, session_id: str) -> None:
        while (settling := self._moving.get(session_id)) is not None:
            await settling.wait()

    @contextmanager
    def _settling(self, session_id: str) -> Iterator[None]:
        """While it comes from another process or leaves for one, calls about it wait."""
        self._moving[session_id] = settled = asyncio.Event()
        try:
            yield
        finally:
            del self._moving[session_id]
            settled.set()

    def _run(self, session_id: str, session: OpenStream, stream: StreamSettings) -> LiveRun:
        run = LiveRun(session_id, session, stream, self.settings, on_change=self._keep, on_over=self._forget)
        self._running[session_id] = run
        return run

    def _keep(self, run: LiveRun) -> None:
        if self._store is not None:
            self._store.keep(run.id, run.kept)

    def _forget(self, run: LiveRun) -> None:
        del self._running[run.id]
        if self._store is not None and not (run.has_moved and self._closing):
            (self._store.release if run.has_moved else self._store.drop)(run.id)
        if run.has_moved:
            return
        limits = self.settings.limits
        self._over[run.id] = run
        while len(self._over) > limits.sessions:
            del self._over[next(iter(self._over))]
        asyncio.get_running_loop().call_later(limits.resume_seconds, self._over.pop, run.id, None)

    def _make_place(self, owner: Owner) -> None:
        own = [run for run in self._running.values() if run.owner == owner.name]
        if owner.most is not None and len(own) + self._opening[owner.name] >= owner.most:
            if (left := self._longest_left(own)) is None:
                message = f"The API key {owner.name} may have {owner.most} live sessions. End one first."
                raise too_many(message, "too_many_sessions")
            left.close()
        self.check()
        if self.open >= self.settings.limits.sessions and (left := self._longest_left()) is not None:
            left.close()

    def _longest_left(self, runs: Iterable[LiveRun] | None = None) -> LiveRun | None:
        """The session that lost its connection first of those without one, among all or some."""
        runs = self._running.values() if runs is None else runs
        left = [(run.left_at, run) for run in runs if run.left_at is not None]
        return min(left, key=lambda one: one[0])[1] if left else None

    def _stream_settings(self, asked: SessionStart) -> StreamSettings:
        settings = self.settings
        model = settings.model_name if asked.model is None else asked.model
        check_model(model, settings.checkpoints)
        check_query(asked.query, settings.limits)
        ceiling = settings.max_tokens_per_frame
        if (asked.max_tokens_per_frame or 0) > ceiling:
            raise bad_request(f"At most {ceiling} tokens per frame are accepted.", "max_tokens_per_frame")
        return StreamSettings(
            query=asked.query or settings.live_query,
            max_tokens_per_frame=asked.max_tokens_per_frame or ceiling,
            model=model,
        )
