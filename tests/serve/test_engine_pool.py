"""Several models in one process: loaded when they are asked for, and given up when others need the room."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import psutil
import pytest

from casa_core.engine.events import Overloaded
from casa_core.engine.requests import GenerationRequest, StreamSettings
from casa_core.errors import StoreError
from casa_core.types import Sample, Text
from serve import engine_pool
from serve.calls import ModelUnavailable
from serve.engine_pool import EnginePool
from tests.support.serve.fakes import FakeEngine

MIB = 1 << 20


class Loader:
    """Loads fakes that answer with their model's name; each can be made to wait, to fail, and to be large."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.alive: weakref.WeakValueDictionary[str, FakeEngine] = weakref.WeakValueDictionary()
        self.broken: set[str] = set()
        self.gates: dict[str, threading.Event] = {}
        self.delay_s = 0.0
        self.bytes = 0

    def __call__(self, name: str) -> FakeEngine:
        self.loaded.append(name)
        if (gate := self.gates.get(name)) is not None:
            assert gate.wait(10)
        if name in self.broken:
            raise StoreError("A file is cut off.", "/models/secret/model.safetensors has 3 bytes.")
        engine: Any = FakeEngine(self.delay_s)
        engine.words_of = lambda question: [name, *question.split()]
        engine.itself, engine.weights = engine, np.ones(self.bytes, np.uint8)  # as a model refers to itself
        self.alive[name] = engine
        return engine


@pytest.fixture
def loader() -> Loader:
    return Loader()


def asked(model: str, question: str = "who") -> GenerationRequest:
    parts = (Text(role="user", text=question),)
    return GenerationRequest(sample=Sample(source="test", sample_id="0", parts=parts), model=model)


async def answer(pool: EnginePool, model: str) -> str:
    return (await pool.generate(asked(model))).text


def run(pool: EnginePool, scene: Callable[[], Awaitable[None]]) -> None:
    async def play() -> None:
        try:
            await asyncio.wait_for(scene(), 20)
        finally:
            pool.close()

    asyncio.run(play())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_the_first_model_is_loaded_at_once_and_the_others_when_they_are_asked_for(loader: Loader):
    pool = EnginePool(loader, "abc", most=3)
    assert loader.loaded == ["a"]

    async def scene() -> None:
        assert [await answer(pool, name) for name in "bab"] == ["b who", "a who", "b who"]
        assert [delta.text async for delta in pool.stream(asked("a"))] == ["a", " who"]
        assert await answer(pool, "of the deployment before") == "a who"
        assert loader.loaded == ["a", "b"]

    run(pool, scene)


def test_the_model_that_was_not_used_for_longest_makes_room_and_its_engine_is_gone(loader: Loader):
    pool = EnginePool(loader, "abc", most=2)

    async def scene() -> None:
        for name in "abac":
            await answer(pool, name)
        assert pool.held == ("a", "c")
        assert set(loader.alive) == {"a", "c"}
        assert await answer(pool, "b") == "b who"
        assert set(loader.alive) == set(pool.held) == {"b", "c"}

    run(pool, scene)


@pytest.mark.slow
def test_the_memory_of_a_model_that_made_room_goes_back_to_the_system(loader: Loader):
    loader.bytes = 96 * MIB
    pool, process = EnginePool(loader, "ab"), psutil.Process()
    before = process.memory_info().rss

    async def scene() -> None:
        for name in "bababa":
            await answer(pool, name)
        assert process.memory_info().rss - before < loader.bytes // 2

    run(pool, scene)


def test_a_model_with_an_open_stream_is_never_given_up(loader: Loader):
    pool = EnginePool(loader, "ab")

    async def scene() -> None:
        session = await pool.open_session(StreamSettings(model="a"))
        with pytest.raises(Overloaded) as refused:
            await answer(pool, "b")
        assert refused.value.retry_after_s == engine_pool.NO_ROOM_RETRY_S
        assert await answer(pool, "a") == "a who"
        session.close()
        session.close()
        assert await answer(pool, "b") == "b who"

    run(pool, scene)


def test_a_model_with_an_answer_in_progress_is_never_given_up(loader: Loader):
    loader.delay_s = 0.05
    pool = EnginePool(loader, "ab")

    async def scene() -> None:
        whole = asyncio.create_task(pool.generate(asked("a", "one two three four")))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await answer(pool, "b")
        assert (await whole).text == "a one two three four"
        pieces = pool.stream(asked("a", "one two"))
        await anext(pieces)
        with pytest.raises(Overloaded):
            await answer(pool, "b")
        await pieces.aclose()  # its client leaves
        with pytest.raises(ValueError, match="too long"):
            await pool.generate(asked("a", "too long"))
        assert await answer(pool, "b") == "b who"

    run(pool, scene)


def test_models_load_one_at_a_time_once_for_all_who_wait_while_others_are_answered(loader: Loader):
    loader.gates = {name: threading.Event() for name in "bc"}
    pool = EnginePool(loader, "abc", most=3)

    async def scene() -> None:
        waiting = [asyncio.create_task(answer(pool, name)) for name in "bbcb"]
        await until(lambda: loader.loaded == ["a", "b"])
        assert await answer(pool, "a") == "a who"
        await pool.ping()
        loader.gates["b"].set()
        await until(lambda: loader.loaded == ["a", "b", "c"])
        assert [await waiting[number] for number in (0, 1, 3)] == ["b who"] * 3
        loader.gates["c"].set()
        assert await waiting[2] == "c who"

    run(pool, scene)


def test_a_model_goes_on_loading_when_its_caller_leaves_and_callers_that_wait_keep_it(loader: Loader):
    loader.gates = {"b": threading.Event()}
    pool = EnginePool(loader, "abc", most=1)

    async def scene() -> None:
        leaving = asyncio.create_task(answer(pool, "b"))
        await until(lambda: "b" in loader.loaded)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        staying, other = (asyncio.create_task(answer(pool, name)) for name in "bc")
        await asyncio.sleep(0)
        loader.gates["b"].set()
        assert await staying == "b who"
        with pytest.raises(Overloaded):
            await other
        assert loader.loaded == ["a", "b"]

    run(pool, scene)


def test_a_checkpoint_that_cannot_be_loaded_is_refused_without_its_path_and_hurts_no_other(
    loader: Loader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    loader.broken = {"b"}
    pool = EnginePool(loader, "ab", most=2)

    async def scene() -> None:
        for _ in range(3):
            with pytest.raises(ModelUnavailable, match="'b' cannot be loaded") as refused:
                await answer(pool, "b")
            assert "/" not in str(refused.value)
        assert loader.loaded == ["a", "b"], "it is not read again for each call"
        assert "/models/secret" in caplog.text, "the log has the reason"
        assert await answer(pool, "a") == "a who"
        loader.broken.clear()
        monkeypatch.setattr(engine_pool, "FAILED_S", 0.0)
        assert await answer(pool, "b") == "b who"

    run(pool, scene)


def test_the_counts_of_an_engine_that_has_ended_are_kept_and_what_it_held_is_not(loader: Loader):
    pool = EnginePool(loader, "ab")

    async def scene() -> None:
        await answer(pool, "a")
        slots = (await pool.load()).slots
        await answer(pool, "b")
        load = await pool.load()
        assert load.tokens == 4
        assert load.slots == slots

    run(pool, scene)
