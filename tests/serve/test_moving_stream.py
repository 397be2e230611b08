"""A live stream while its replica dies, call by call. The engines here are lists; no Ray is started."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.handle import DeploymentHandle

from casa_core.engine.events import Failed, Overloaded, StreamMoved
from casa_core.engine.requests import CaptionEvent, StreamSettings
from casa_core.engine.saved_session import SavedSession, Transcript
from serve.engine_replica import Opened
from serve.moving_stream import MovingStream

DIE, FORGET, DEPART = object(), object(), object()


class Cluster:
    """An engine deployment: streams by their names, wherever a call is sent. As Serve does, a call to a
    replica that has died is sent on to another."""

    def __init__(self) -> None:
        self.streams: dict[str, asyncio.Queue[Any]] = {}
        self.opened: list[Any] = []
        self.refuse: list[Exception] = []
        self.asked: list[str] = []
        self.hold = asyncio.Event()  # calls with frames arrive once it is set
        self.hold.set()
        self._method = ""

    def options(self, *, method_name: str = "", **_: Any) -> Cluster:
        self._method = method_name
        return self

    def remote(self, name: str, *arguments: Any) -> Any:
        return getattr(self, f"_{self._method}")(name, *arguments)

    @property
    def open(self) -> Any:
        return type("Open", (), {"remote": staticmethod(self._open)})

    async def _open(self, name: str, settings: StreamSettings, begin: Any) -> AsyncIterator[list[Any]]:
        if self.refuse:
            yield [Failed(self.refuse.pop())]
            return
        self.opened.append(begin)
        queue = self.streams[name] = asyncio.Queue()
        yield [Opened(f"engine-{len(self.opened)}", exact=True)]
        transcript = begin.transcript if isinstance(begin, SavedSession) else begin
        ids: tuple[int, ...] = transcript.ids if transcript is not None else ()
        while (frame := await queue.get()) not in (DIE, FORGET, DEPART):
            ids = (*ids, int(frame[0]))
            caption = CaptionEvent(
                timestamp=frame[0], text=f"{frame[1].decode()}", token_ids=(1,), latency_s=0.0, text_tokens=1
            )
            transcript = Transcript(
                query="", max_tokens_per_frame=1, ids=ids, pending=(), frame=None, frame_at=0
            )
            transcript = replace(transcript, timestamp=frame[0])
            yield [caption, transcript]
        del self.streams[name]
        if frame is DIE:
            raise ActorDiedError()
        if frame is DEPART:
            assert transcript is not None
            yield [SavedSession(identity={}, transcript=transcript, sequence=None, sampler={})]  # pyright: ignore[reportArgumentType]

    async def _depart(self, name: str) -> bool:
        self.streams[name].put_nowait(DEPART)
        return True

    async def _prompt(self, name: str, query: str) -> bool:
        self.asked.append(query)
        return name in self.streams

    async def _feed(self, name: str, frames: list[tuple[float, bytes]]) -> bool:
        await self.hold.wait()
        for frame in frames if name in self.streams else ():
            self.streams[name].put_nowait(frame)
        return name in self.streams

    async def _finish(self, name: str) -> None:
        del self.streams[name]

    def end(self, how: object = DIE) -> None:
        """The replica of the one stream dies, or ends the stream."""
        [queue] = self.streams.values()
        queue.put_nowait(how)


def scene(play: Callable[[Cluster, MovingStream], Any], refuse: Sequence[Exception] = ()) -> Any:
    async def run() -> Any:
        cluster = Cluster()
        cluster.refuse = list(refuse)
        stream = MovingStream(cast(DeploymentHandle, cluster), StreamSettings(), lambda _: None)
        try:
            return await asyncio.wait_for(play(cluster, stream), 20)
        finally:
            stream.close()

    return asyncio.run(run())


async def heard(stream: MovingStream, count: int) -> list[Any]:
    """The texts of captions, and `moved`, as they come."""
    found = []
    for _ in range(count):
        outcome = await anext(stream)
        found.append("moved" if isinstance(outcome, StreamMoved) else outcome.text)
    return found


def test_a_frame_on_its_way_to_a_replica_that_dies_is_captioned_once():
    async def play(cluster: Cluster, stream: MovingStream) -> None:
        await stream.opened()
        await stream.push_frame(b"one", 0.0)
        assert await heard(stream, 1) == ["one"]
        cluster.hold.clear()
        await stream.push_frame(b"two", 1.0)
        await asyncio.sleep(0.01)
        cluster.end()
        assert await heard(stream, 1) == ["moved"]
        cluster.hold.set()  # the call that was under way is sent on to the replica that holds the stream now
        await stream.push_frame(b"three", 2.0)
        assert await heard(stream, 2) == ["two", "three"]

    scene(play)


def test_after_a_death_it_goes_on_from_its_last_transcript_and_picture():
    async def play(cluster: Cluster, stream: MovingStream) -> None:
        await stream.opened()
        for number in range(3):
            await stream.push_frame(b"picture %d" % number, float(number))
        await heard(stream, 3)
        cluster.end()
        assert await heard(stream, 1) == ["moved"]
        begin = cluster.opened[-1]
        assert (begin.ids, begin.timestamp, begin.frame) == ((0, 1, 2), 2.0, b"picture 2")

    scene(play)


def test_it_dies_again_and_again_and_no_frame_is_lost_or_captioned_twice():
    async def play(cluster: Cluster, stream: MovingStream) -> None:
        await stream.opened()
        texts: list[str] = []
        for number in range(21):
            await stream.push_frame(b"%d" % number, float(number))
            if number % 3 == 2:
                cluster.end()
                while "moved" not in texts:
                    texts += await heard(stream, 1)
                texts.remove("moved")
        texts += await heard(stream, 21 - len(texts))
        assert texts == [str(number) for number in range(21)]

    scene(play)


def test_one_that_moves_waits_for_room():
    async def play(cluster: Cluster, stream: MovingStream) -> None:
        await stream.opened()
        cluster.refuse = [Overloaded("Full.", "No slot is free.", 1.0)]
        cluster.end()
        assert await heard(stream, 1) == ["moved"]

    scene(play)


def test_a_new_one_is_refused_where_there_is_no_room():
    async def play(_: Cluster, stream: MovingStream) -> None:
        with pytest.raises(Overloaded):
            await stream.opened()

    scene(play, refuse=[Overloaded("Full.", "No slot is free.", 1.0)])


def test_one_that_its_replica_has_ended_for_lack_of_news_goes_on():
    async def play(cluster: Cluster, stream: MovingStream) -> None:
        await stream.opened()
        await stream.push_frame(b"one", 0.0)
        assert await heard(stream, 1) == ["one"]
        cluster.end(FORGET)
        await stream.push_frame(b"two", 1.0)
        assert await heard(stream, 2) == ["moved", "two"]
        assert cluster.opened[-1].ids == (0,)

    scene(play)


def follower(cluster: Cluster, begin: SavedSession | Transcript | None) -> MovingStream:
    """The stream at another endpoint."""
    return MovingStream(cast(DeploymentHandle, cluster), StreamSettings(), lambda _: None, begin)


def test_another_endpoint_goes_on_from_its_state_with_the_frames_without_words():
    async def play(cluster: Cluster, stream: MovingStream) -> None:
        await stream.opened()
        await stream.push_frame(b"one", 0.0)
        assert stream.state() is None or not stream.state().ids, "the caption has not come, or not been read"
        assert await heard(stream, 1) == ["one"]
        cluster.hold.clear()
        for number, name in enumerate((b"two", b"three"), 1):
            await stream.push_frame(name, float(number))
        asking = asyncio.create_task(stream.prompt("what is it"))
        await asyncio.sleep(0.01)
        await asking
        again = follower(cluster, pickle.loads(pickle.dumps(stream.state())))
        cluster.hold.set()
        moved = await anext(again)
        assert moved == StreamMoved(exact=False, frames_lost=())
        assert await heard(again, 2) == ["two", "three"]
        begin = cluster.opened[-1]
        assert (begin.ids, begin.frame, begin.prompts) == ((0,), b"one", ("what is it",))
        assert begin.waiting == (), "the endpoint sends them"
        assert cluster.asked == ["what is it"], "the transcript asks it again"
        again.close()

    scene(play)


def test_another_endpoint_begins_anew_with_one_that_has_read_nothing():
    async def play(cluster: Cluster, stream: MovingStream) -> None:
        await stream.opened()
        cluster.hold.clear()
        await stream.push_frame(b"one", 0.0)
        again = follower(cluster, stream.state())
        cluster.hold.set()
        assert await heard(again, 2) == ["moved", "one"]
        assert cluster.opened == [None, None]
        again.close()

    scene(play)


def test_it_leaves_for_another_endpoint_exactly():
    async def play(cluster: Cluster, stream: MovingStream) -> None:
        await stream.opened()
        await stream.push_frame(b"one", 0.0)
        assert await heard(stream, 1) == ["one"]
        cluster.hold.clear()
        await stream.push_frame(b"two", 1.0)
        begin = await stream.leave()
        assert isinstance(begin, SavedSession)
        assert begin.transcript.waiting == ((1.0, b"two"),)
        again = follower(cluster, begin)
        cluster.hold.set()
        assert await anext(again) == StreamMoved(exact=True)
        assert await heard(again, 1) == ["two"]
        again.close()

    scene(play)


def test_it_leaves_approximately_where_its_replica_is_gone():
    async def play(cluster: Cluster, stream: MovingStream) -> None:
        await stream.opened()
        await stream.push_frame(b"one", 0.0)
        assert await heard(stream, 1) == ["one"]
        cluster.refuse = [Overloaded("Full.", "No slot is free.", 1.0)] * 2
        cluster.end()
        await asyncio.sleep(0.01)
        begin = await stream.leave()
        assert isinstance(begin, Transcript)
        assert (begin.ids, begin.frame) == ((0,), b"one")

    scene(play)
