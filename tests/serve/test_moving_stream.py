"""A live stream while its replica dies, call by call. The engines here are lists; no Ray is started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.handle import DeploymentHandle

from casa_core.engine.events import Failed, Overloaded, StreamMoved
from casa_core.engine.live_stream import StreamSettings
from casa_core.engine.requests import CaptionEvent
from casa_core.engine.saved_session import Transcript
from serve.engine_replica import Opened
from serve.moving_stream import MovingStream

DIE = object()


class Cluster:
    """An engine deployment: streams by their names, wherever a call is sent. As Serve does, a call to a
    replica that has died is sent on to another."""

    def __init__(self) -> None:
        self.streams: dict[str, asyncio.Queue[Any]] = {}
        self.opened: list[Any] = []
        self.refuse: list[Exception] = []
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
        ids: tuple[int, ...] = begin.ids if begin is not None else ()
        while (frame := await queue.get()) is not DIE:
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
        raise ActorDiedError()

    async def _feed(self, name: str, frames: list[tuple[float, bytes]]) -> bool:
        await self.hold.wait()
        for frame in frames if name in self.streams else ():
            self.streams[name].put_nowait(frame)
        return name in self.streams

    async def _finish(self, name: str) -> None:
        del self.streams[name]

    def die(self) -> None:
        """The replica of the one stream dies."""
        [queue] = self.streams.values()
        queue.put_nowait(DIE)


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
        cluster.die()
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
        cluster.die()
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
                cluster.die()
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
        cluster.die()
        assert await heard(stream, 1) == ["moved"]

    scene(play)


def test_a_new_one_is_refused_where_there_is_no_room():
    async def play(_: Cluster, stream: MovingStream) -> None:
        with pytest.raises(Overloaded):
            await stream.opened()

    scene(play, refuse=[Overloaded("Full.", "No slot is free.", 1.0)])
