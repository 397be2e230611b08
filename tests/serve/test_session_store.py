"""Live sessions kept outside of their endpoint: what is sent, who gets it, and what is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from casa_core.engine.requests import StreamSettings
from casa_core.engine.saved_session import Transcript
from serve import session_keeper
from serve.live.account import Account
from serve.live.state import Kept, RunState
from serve.session_keeper import SessionKeeper
from serve.session_table import SessionTable, Stored, Update, Verdict

JPEG = 1000
"""Bytes of a frame here."""


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_keeper, "KEPT_EVERY_S", 0.01)
    monkeypatch.setattr(session_keeper, "HEARD_EVERY_S", 0.05)
    monkeypatch.setattr(session_keeper, "AGAIN_AFTER_S", 0.01)


class Store:
    """The table by calls that can fail, and what they carried."""

    def __init__(self) -> None:
        self.table = SessionTable(10**6, kept_events=8, seconds=60)
        self.fail = 0
        self.calls: list[list[Update]] = []
        self.at_once = self.most_at_once = 0

    async def keep(self, holder: str, held: Any, updates: Any, ended: Any) -> Verdict:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        if self.fail:
            self.fail -= 1
            raise ActorDiedError()
        self.calls.append(list(updates))
        return self.table.keep(holder, held, updates, ended)

    async def take(self, session_id: str, taker: str, new: bool = False) -> Stored | None:
        return self.table.take(session_id, taker, new)


class Session:
    """A session that has had some events and frames."""

    def __init__(self, session_id: str = "live-a-1") -> None:
        self.id = session_id
        self.events = 0
        self.read = 0
        self.waiting: list[float] = []

    def caption(self) -> None:
        self.read, self.events = self.read + 1, self.events + 1

    def kept(self) -> Kept:
        events = tuple({"event": number + 1} for number in range(max(0, self.events - 8), self.events))
        run = RunState(
            session_id=self.id,
            stream=StreamSettings(),
            account=Account(),
            seconds=1.0,
            event=self.events,
            events=events,
        )
        frames = tuple((time, bytes(JPEG)) for time in self.waiting)
        transcript = Transcript(
            query="", max_tokens_per_frame=1, ids=(1,) * self.read, pending=(), frame=None, frame_at=0
        )
        picture = bytes([self.read % 256]) * JPEG
        return Kept(run, replace(transcript, timestamp=float(self.read), frame=picture, waiting=frames))


async def nowhere(holder: str, session_id: str, to_read: bool) -> Kept | None:
    """No endpoint but this one lives."""
    return None


def keeper(name: str, store: Store, fetch: Any = nowhere, ended: list[Any] | None = None) -> SessionKeeper:
    async def end(*place: str) -> None:
        if ended is not None:
            ended.append(place)

    return SessionKeeper(name, store, fetch, end)


def scene(play: Callable[[Store], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(play(Store()), 10))


async def until(holds: Callable[[], Any]) -> None:
    while not holds():
        await asyncio.sleep(0.002)


def test_another_endpoint_takes_a_session_as_it_was_kept():
    async def play(store: Store) -> None:
        session, ended = Session(), []
        session.caption()
        session.waiting = [2.0, 3.0]
        here = keeper("a", store)
        kept = replace(session.kept(), place=("engine-1", "x.1"))
        here.keep(session.id, lambda: kept)
        await until(lambda: store.calls)
        there = keeper("b", store, ended=ended)
        assert await there.take(session.id, to_read=True) == kept
        assert ended == [("engine-1", "x.1")], "the stream of the endpoint that is gone"
        assert await there.take("live-a-other", to_read=True) is None

    scene(play)


def test_each_event_and_frame_is_sent_once_and_many_changes_together():
    async def play(store: Store) -> None:
        session, here = Session(), keeper("a", store)
        for number in range(300):
            session.caption()
            session.waiting = [float(number + 2)]
            here.keep(session.id, session.kept)
            if number % 100 == 99:
                seen = len(store.calls)
                await until(lambda seen=seen: len(store.calls) > seen)
        updates = [update for call in store.calls for update in call]
        assert len(updates) < 10
        assert store.most_at_once == 1
        assert all(len(update.events) <= 8 for update in updates), "those that are kept"
        assert sum(len(update.frames) for update in updates) <= 2 * len(updates)
        found = await keeper("b", store).take(session.id, to_read=True)
        assert found == session.kept()

    scene(play)


def test_a_store_that_has_been_replaced_gets_everything_again():
    async def play(store: Store) -> None:
        session, here = Session(), keeper("a", store)
        session.caption()
        here.keep(session.id, session.kept)
        await until(lambda: len(store.table))
        store.table = SessionTable(10**6, kept_events=8, seconds=60)
        await until(lambda: len(store.table))  # though nothing has changed
        assert await keeper("b", store).take(session.id, to_read=True) == session.kept()

    scene(play)


def test_a_call_that_fails_is_made_again():
    async def play(store: Store) -> None:
        session, here = Session(), keeper("a", store)
        store.fail = 3
        here.keep(session.id, session.kept)
        await until(lambda: len(store.table))
        store.fail = 2
        here.drop(session.id)
        await until(lambda: not len(store.table))

    scene(play)


def test_what_cannot_be_had_at_one_moment_is_sent_later():
    async def play(store: Store) -> None:
        session, here, not_yet = Session(), keeper("a", store), [None, None]
        here.keep(session.id, lambda: not_yet.pop() if not_yet else session.kept())
        await until(lambda: len(store.table))

    scene(play)


def test_one_that_cannot_be_kept_does_not_keep_the_others_from_it():
    async def play(store: Store) -> None:
        session, here = Session(), keeper("a", store)
        here.keep("live-a-broken", lambda: 1 / 0)  # pyright: ignore[reportArgumentType]
        here.keep(session.id, session.kept)
        await until(lambda: len(store.table))
        assert store.table.take(session.id, "b") is not None

    scene(play)


def test_a_session_of_an_endpoint_that_lives_comes_from_there_and_is_kept_no_more_by_it():
    async def play(store: Store) -> None:
        session, exact = Session(), Session()
        exact.caption()
        here = keeper("a", store)
        here.keep(session.id, session.kept)
        await until(lambda: len(store.table))

        async def fetch(holder: str, session_id: str, to_read: bool) -> Kept | None:
            assert (holder, session_id, to_read) == ("a", session.id, False)
            here.release(session_id)
            return exact.kept()

        there, ended = keeper("b", store, fetch), []
        assert await there.take(session.id, to_read=False) == exact.kept()
        assert not ended
        there.keep(session.id, exact.kept)
        here.keep("live-a-2", Session("live-a-2").kept)
        await until(lambda: len(store.table) == 2)
        here.drop(session.id)  # it has not this one any more
        await asyncio.sleep(0.05)
        assert len(store.table) == 2

    scene(play)


def test_a_session_so_new_that_it_is_not_kept_comes_from_the_endpoint_in_its_id():
    async def play(store: Store) -> None:
        session = Session("live-a-1")

        async def fetch(holder: str, session_id: str, to_read: bool) -> Kept | None:
            return session.kept() if holder == "a" else None

        there = keeper("b", store, fetch)
        assert await there.take("live-a-1", to_read=True) == session.kept()
        assert await there.take("live-c-1", to_read=True) is None
        assert await there.take("live", to_read=True) is None

    scene(play)


def test_a_session_that_is_being_taken_is_not_given_to_a_third():
    async def play(store: Store) -> None:
        session, asked, go = Session(), [], asyncio.Event()
        here = keeper("a", store)
        here.keep(session.id, session.kept)
        await until(lambda: len(store.table))

        async def slow(holder: str, session_id: str, to_read: bool) -> Kept | None:
            asked.append(holder)
            await go.wait()
            return None

        there = keeper("b", store, slow)
        there.keep("live-b-1", Session("live-b-1").kept)
        taking = asyncio.create_task(there.take(session.id, to_read=True))
        await until(lambda: asked)
        calls = len(store.calls)
        await until(lambda: len(store.calls) > calls + 3)
        third = asyncio.create_task(keeper("c", store, slow).take(session.id, to_read=True))
        await until(lambda: len(asked) == 2)
        assert asked == ["a", "b"], "it is asked of the one that is taking it"
        go.set()
        await asyncio.gather(taking, third)

    scene(play)


def test_a_session_that_has_just_ended_is_not_brought_back():
    async def play(store: Store) -> None:
        session, here = Session(), keeper("a", store)
        here.keep(session.id, session.kept)
        await until(lambda: len(store.table))

        async def fetch(holder: str, session_id: str, to_read: bool) -> Kept | None:
            raise LookupError

        there = keeper("b", store, fetch)
        assert await there.take(session.id, to_read=True) is None
        await until(lambda: not len(store.table))

    scene(play)


def test_an_endpoint_that_was_taken_for_dead_ends_its_sessions_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(session_keeper, "LEFT_AFTER_S", 0.1)

    async def play(store: Store) -> None:
        session, here = Session(), keeper("a", store)
        left: list[str] = []
        here.on_taken = left.append
        here.keep(session.id, session.kept)
        await until(lambda: len(store.table))
        assert await keeper("b", store).take(session.id, to_read=True) is not None
        await until(lambda: left)
        assert set(left) == {session.id}
        [stored] = store.table._sessions.values()
        assert stored.holder == "b"

    scene(play)


def update(session_id: str, *, since: int | None, event: int, size: int = 10) -> Update:
    return Update(
        session_id=session_id,
        since=since,
        event=event,
        events=(b"{}",) * (event - (since or 0)),
        frames={},
        needed=(),
        state=bytes(size),
    )


def test_the_table_is_bounded_and_forgets_those_of_whom_nothing_is_heard():
    now = [0.0]
    table = SessionTable(1000, kept_events=4, seconds=30, clock=lambda: now[0])
    for number in range(10):
        name = f"s{number}"
        table.keep("a", {name: 0}, [update(name, since=None, event=9, size=190)], {})
    assert table.bytes_held <= 1000
    assert len(table) == 5
    assert table.take("s0", "b") is None
    found = table.take("s9", "b")
    assert found is not None
    assert (found.holder, found.event, len(found.events), found.term) == ("a", 9, 4, 1)
    for moment in (20.0, 40.0):
        now[0] = moment
        table.keep("a", {"s8": 0}, [], {})
    assert len(table) == 1
    assert table.take("s8", "b") is not None
    table.keep("b", {"s8": 1}, [], {"s8": 1})
    assert (len(table), table.bytes_held) == (0, 0)


def test_the_table_asks_for_what_it_does_not_know():
    table = SessionTable(1000, kept_events=4, seconds=30)
    own = {"s": 0}
    assert table.keep("a", own, [update("s", since=3, event=4)], {}) == Verdict(("s",), ())
    assert table.keep("a", own, [update("s", since=None, event=4)], {}) == Verdict((), ())
    assert table.keep("a", own, [update("s", since=5, event=6)], {}) == Verdict(("s",), ())
    assert table.keep("a", own, [update("s", since=4, event=6)], {}) == Verdict((), ())
    assert table.keep("a", {"s": 1}, [], {}) == Verdict(("s",), ()), "a term that it has not heard of"


def test_what_was_on_its_way_when_a_session_was_taken_changes_nothing():
    table = SessionTable(1000, kept_events=4, seconds=30)
    table.keep("a", {"s": 0}, [update("s", since=None, event=4)], {})
    first = table.take("s", "b")
    late = table.keep("a", {"s": 0}, [update("s", since=None, event=9)], {"s": 0})
    assert late == Verdict((), ("s",))
    table.keep("b", {}, [], {})
    second = table.take("s", "c")
    assert first is not None
    assert second is not None
    assert (first.holder, first.event, second.holder, second.event) == ("a", 4, "b", 4)


def test_one_that_is_taken_before_anything_is_known_of_it_is_its_takers():
    table = SessionTable(1000, kept_events=4, seconds=30)
    assert table.take("s", "b") is None
    taken = table.take("s", "b", new=True)
    assert taken is not None
    assert taken.term == 1
    assert table.keep("a", {"s": 0}, [update("s", since=None, event=2)], {}) == Verdict((), ("s",))
    assert table.keep("b", {"s": 1}, [update("s", since=None, event=3)], {}) == Verdict((), ())
