"""A session apart from what carries it: bounded in memory, and continued in another process."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi import FastAPI

from casa_core.engine.client import EngineClient, LiveSession
from casa_core.engine.events import FrameRefused, Outcome, StreamMoved
from casa_core.engine.requests import CaptionEvent, StreamSettings
from casa_core.engine.saved_session import Transcript
from serve.api.errors import ApiError
from serve.live.messages import SessionStart
from serve.live.run import LiveRun
from serve.live.sessions import LiveSessions
from serve.live.socket import live_router
from serve.live.state import Kept, RunState
from tests.support.serve.fakes import FakeEngine
from tests.support.serve.server import binary_frame, picture, settings_with

RED = picture("red")


class ByHand:
    """A stream of the engine whose outcomes the test makes."""

    def __init__(self) -> None:
        self.pushed: list[float] = []
        self.closed = False
        self._outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()

    async def push_frame(self, image: object, timestamp: float) -> None:
        self.pushed.append(timestamp)

    async def prompt(self, query: str) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        while (outcome := await self._outcomes.get()) is not None:
            yield outcome

    async def make(self, *outcomes: Outcome) -> None:
        for outcome in outcomes:
            self._outcomes.put_nowait(outcome)
        for _ in range(10):
            await asyncio.sleep(0)

    def finish(self) -> None:
        self._outcomes.put_nowait(None)

    def close(self) -> None:
        self.closed = True


def caption(timestamp: float, text: str = "red") -> CaptionEvent:
    return CaptionEvent(timestamp=timestamp, text=text, token_ids=(1,), latency_s=0.0, text_tokens=1)


def begun(stream: ByHand, **limits: float) -> LiveRun:
    run = LiveRun("live-x", stream, StreamSettings(), settings_with(limits=limits))  # pyright: ignore[reportArgumentType]
    run.start()
    return run


def test_a_client_that_reads_nothing_loses_its_session_and_costs_no_more_memory():
    async def main() -> None:
        stream = ByHand()
        run = begun(stream, kept_events=4)
        reader = run.attach()
        for number in range(100):
            if run.over:
                break
            await run.push(RED, number)
            await stream.make(caption(number))
        assert stream.closed
        assert run.failure is not None
        assert run.failure.code == "events_unread"
        assert len(stream.pushed) < 10
        assert len(run.state().events) <= 4
        with pytest.raises(ApiError, match="were not read"):
            await reader.until_cut()

    asyncio.run(main())


def test_events_that_nobody_reads_are_kept_up_to_a_bound():
    async def main() -> None:
        stream = ByHand()
        run = begun(stream, kept_events=4)
        for number in range(100):
            await run.push(RED, number)
            await stream.make(caption(number))
        assert not run.over
        assert [event["event"] for event in run.state().events] == [98, 99, 100, 101]
        run.close()

    asyncio.run(main())


def test_another_process_continues_a_session_from_its_state():
    async def main() -> None:
        stream = ByHand()
        run = begun(stream)
        await run.push(RED, 0.0)
        await run.push(RED, 1.0)
        await run.push(RED, 2.0)
        await run.ask("what colour")
        await stream.make(caption(0.0))
        state: RunState = pickle.loads(pickle.dumps(run.state()))
        elsewhere = ByHand()
        again = LiveRun("live-x", elsewhere, state.stream, settings_with())  # pyright: ignore[reportArgumentType]
        again.resume(state)
        reader = again.attach(after=2)
        await elsewhere.make(StreamMoved(exact=False, frames_lost=(1.0,)), caption(2.0))
        events = [await anext(reader) for _ in range(3)]
        assert [event["event"] for event in events] == [3, 4, 5]
        assert (events[0]["type"], events[0]["exact"]) == ("session.moved", False)
        assert (events[1]["type"], events[1]["timestamp"], events[1]["reason"]) == ("dropped", 1.0, "moved")
        assert (events[2]["type"], events[2]["timestamp"]) == ("caption", 2.0)
        with pytest.raises(ApiError, match="must increase"):
            await again.push(RED, 2.0)
        assert (again.usage["frames"], again.usage["dropped"], again.usage["received"]) == (2, 1, 3)
        again.finish()
        assert not again.over, "the question is still to be answered"
        run.close()
        again.close()

    asyncio.run(main())


def test_a_frame_of_a_shape_that_the_model_refuses_ends_no_session():
    async def main() -> None:
        stream = ByHand()
        run = begun(stream)
        reader = run.attach(after=1)
        await run.push(RED, 0.0)
        await stream.make(FrameRefused(0.0, ValueError("aspect ratio 5000 at 0x7f00")))
        refused = await anext(reader)
        assert (refused["fatal"], refused["error"]["code"], refused["timestamp"]) == (
            False,
            "invalid_image",
            0.0,
        )
        assert "0x" not in refused["error"]["message"]
        await run.push(RED, 1.0)
        await stream.make(caption(1.0))
        assert (await anext(reader))["type"] == "caption"
        run.close()

    asyncio.run(main())


class InMemory:
    """A store that keeps everything at once."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}

    def keep(self, session_id: str, kept: Callable[[], Kept | None]) -> None:
        if (now := kept()) is not None:
            self.kept[session_id] = now

    def drop(self, session_id: str) -> None:
        self.kept.pop(session_id, None)

    release = drop

    async def take(self, session_id: str, *, to_read: bool) -> Kept | None:
        return self.kept.pop(session_id, None)

    async def close(self) -> None:
        pass


class Movable(EngineClient):
    """An engine with whose streams another process can go on."""

    async def open_session(self, settings: StreamSettings, begin: Any = None, **_: Any) -> LiveSession:
        session = await super().open_session(settings, begin)
        transcript = lambda: self._engine.transcript(session._number)  # noqa: E731

        async def leave() -> Transcript:
            return transcript()

        session.state, session.leave = transcript, leave
        return session


def test_sessions_are_kept_from_their_start_after_each_outcome_found_in_the_store_and_dropped_at_their_end():
    async def main() -> None:
        client, store = Movable(FakeEngine()), InMemory()
        here, there = (LiveSessions(client, settings_with(), store) for _ in range(2))
        run = await here.start(SessionStart())
        assert store.kept[run.id].run.event == 1
        reader = run.attach()
        await run.push(RED, 0.0)
        assert [(await anext(reader))["type"] for _ in range(2)] == ["session.started", "caption"]
        assert store.kept[run.id].run.event == 2
        moved = await there.find(run.id)
        assert (moved.event, moved.usage["frames"], there.open) == (2, 1, 1)
        with pytest.raises(ApiError, match="no live session"):
            await there.find("live-other")
        await moved.push(RED, 1.0)
        while moved.credits < 8:
            await asyncio.sleep(0.01)
        assert run.id in store.kept
        moved.close()
        assert run.id not in store.kept
        await here.close()
        client.close()

    asyncio.run(main())


def test_sessions_of_a_server_that_stops_are_told_to_resume_and_found_by_all_who_ask_at_once():
    async def main() -> None:
        client, store = Movable(FakeEngine()), InMemory()
        here, there = (LiveSessions(client, settings_with(), store) for _ in range(2))
        run = await here.start(SessionStart())
        reader = run.attach(after=1)
        await run.push(RED, 0.0)
        await anext(reader)
        await here.close()
        assert here.open == 0
        with pytest.raises(ApiError, match="resume it") as told:
            await anext(reader)
        assert (told.value.status_code, told.value.code) == (503, "session_moves")
        found = await asyncio.gather(*(there.find(run.id) for _ in range(3)))
        assert len(set(map(id, found))) == 1
        assert (found[0].event, found[0].over, there.open) == (2, False, 1)
        await there.close()
        client.close()

    asyncio.run(main())


def test_a_session_of_another_living_process_moves_and_its_reader_is_told_which_way():
    async def main() -> None:
        client, store = Movable(FakeEngine()), InMemory()
        here, there = (LiveSessions(client, settings_with(), store) for _ in range(2))
        for to_read, code in ((True, "session_taken_over"), (False, "session_moves")):
            run = await here.start(SessionStart())
            reader = run.attach(after=1)
            kept = await here.hand_over(run.id, to_read=to_read)
            assert kept is not None
            assert kept.run.event == 1
            with pytest.raises(ApiError) as told:
                await anext(reader)
            assert told.value.code == code
            assert await here.hand_over(run.id, to_read=to_read) is None, "it is here no more"
            assert here.open == 0
            store.kept[run.id] = kept
            assert (await there.find(run.id)).id == run.id
            store.kept[run.id] = kept
            back = await here.find(run.id)
            assert not back.over, "and may come back"
            back.close()
        await there.close()
        client.close()

    asyncio.run(main())


def test_events_that_were_not_kept_are_followed_by_new_numbers():
    """The client has events 2 and 3 of a process that died with event 1 kept."""

    async def main() -> None:
        stream = ByHand()
        run = begun(stream)
        state = run.state()
        again = LiveRun("live-x", ByHand(), state.stream, settings_with())  # pyright: ignore[reportArgumentType]
        again.resume(state)
        again.report_usage()
        resumed = again.resumed_event(3)
        assert (resumed["event"], resumed["lost"]) == (3, 0)
        event = await anext(again.attach(after=3))
        assert (event["type"], event["event"]) == ("session.usage", 4)
        with pytest.raises(ApiError, match="latest event is number 4, not 9"):
            again.attach(after=9)
        run.close()
        again.close()

    asyncio.run(main())


def test_a_client_cannot_have_had_more_events_than_were_kept():
    async def main() -> None:
        run = begun(ByHand(), kept_events=4)
        again = LiveRun("live-x", ByHand(), run.stream, settings_with(limits={"kept_events": 4}))  # pyright: ignore[reportArgumentType]
        again.resume(run.state())
        with pytest.raises(ApiError, match="latest event is number 1, not 6"):
            again.attach(after=6)
        run.close()
        again.close()

    asyncio.run(main())


def test_a_connection_that_takes_nothing_is_left_and_its_session_freed():
    """The buffers in between are full: sending waits for ever."""

    async def main() -> None:
        engine = FakeEngine()
        client = EngineClient(engine)
        sessions = LiveSessions(client, settings_with(limits={"kept_events": 4}))
        frames = iter(range(1000))
        start = {"type": "websocket.receive", "text": '{"type": "session.start"}'}
        received = [{"type": "websocket.connect"}, start]
        sent: list[str] = []

        async def receive() -> dict[str, Any]:
            if received:
                return received.pop(0)
            await asyncio.sleep(0.005)
            return {"type": "websocket.receive", "bytes": binary_frame(next(frames), RED)}

        async def send(message: Any) -> None:
            sent.append(message["type"])
            if message["type"] == "websocket.send":
                await asyncio.Event().wait()

        app = FastAPI()
        app.include_router(live_router(sessions))
        scope = {"type": "websocket", "path": "/v1/live", "headers": [], "query_string": b"", "asgi": {}}
        async with asyncio.timeout(10):
            await app(scope, receive, send)
        assert sessions.open == 0
        assert sent.count("websocket.send") == 2, "the first event, and why the connection is closed"
        assert next(frames) < 50
        while engine.open_sessions:
            await asyncio.sleep(0.01)
        client.close()

    asyncio.run(main())
