"""The engine called in lockstep: callers get their own events; what is forgotten or fails leaves nothing."""

from __future__ import annotations

import gc
import queue
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from casa_core.decoding.kv_batch import KVBatch
from casa_core.engine.engine import Engine
from casa_core.engine.events import Failed
from casa_core.engine.requests import CaptionEvent, GenerationResult, StreamSettings
from casa_core.errors import DataError, MediaError
from tests.support.core.engine import picture, png
from tests.support.core.loop import asked, fresh, idle, of, until


@pytest.fixture(scope="module")
def known(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.fixture
def engine(known: Engine) -> Engine:
    return fresh(known, slots=4)


LONG = asked(png(1), "what is it", max_new_tokens=20, stop_bias=-100.0)


def test_sessions_and_a_generator_interleaved_get_their_own_events(known: Engine, engine: Engine):
    expected = "".join(delta.text for delta in known.stream(LONG))
    alone = []
    for query in ("what colour", "is it"):
        session = known.open_session(query, max_tokens_per_frame=4)
        alone.append([session.push_frame(picture(n), float(n)).token_ids for n in range(6)])
        session.close()
    sessions = [engine.open_session(query, max_tokens_per_frame=4) for query in ("what colour", "is it")]
    generator, pieces, heard = engine.stream(LONG), [], [[], []]
    for n in range(6):
        pieces.append(next(generator).text)
        for session, own in zip(sessions, heard, strict=True):
            own.append(session.push_frame(picture(n), float(n)).token_ids)
        engine.generate([asked("is it")])
    pieces += [delta.text for delta in generator]
    assert "".join(pieces) == expected
    assert heard == alone
    assert not engine._events


def test_a_forgotten_session_or_generator_gives_its_slot_back(engine: Engine):
    session, generator = engine.open_session(""), engine.stream(LONG)
    session.push_frame(picture(1), 0.0)
    next(generator)
    assert len(engine._steps.running) == 2
    del session
    generator.close()
    del generator
    assert engine.busy
    engine.step()
    assert (engine._slots.free_slots, engine._steps.running, engine.busy) == (4, {}, False)
    for _ in range(20):  # each takes the slot of the one before, without a step between
        engine.open_session("").push_frame(picture(1), 0.0)
        for _ in range(3):
            engine.open_session("")


def test_what_is_collected_in_the_middle_of_a_step_ends_before_the_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    session = engine.open_session("", max_tokens_per_frame=4)
    session.push_frame(picture(1), 0.0)
    generator = engine.stream(LONG)
    next(generator)
    held: list[Any] = [session, generator]
    held.append(held)  # a cycle, as a traceback makes one
    original = KVBatch.extend

    def extend(*args: Any) -> torch.Tensor:
        logits_AV = original(*args)
        gc.collect()
        return logits_AV

    monkeypatch.setattr(KVBatch, "extend", extend)
    other = engine.submit(asked("what is it"))
    del session, generator, held
    events = idle(engine)
    assert isinstance(of(events, other)[0], GenerationResult)
    assert (engine._slots.free_slots, engine._steps.running) == (4, {})


@pytest.mark.parametrize("wrong", [asked(b"no picture", "what"), asked("red " * 900)])
def test_an_error_in_the_middle_of_generate_leaves_nothing_running(engine: Engine, wrong: Any):
    with pytest.raises((MediaError, DataError)):
        engine.generate([LONG, LONG, wrong, LONG])
    assert (engine._slots.free_slots, engine._steps.running, engine._events) == (4, {}, [])
    assert len(engine.generate([LONG])[0].token_ids) == 20


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_forward_that_fails_ends_its_own_and_the_next_ones_are_right(
    known: Engine, engine: Engine, error: BaseException, monkeypatch: pytest.MonkeyPatch
):
    expected = [result.token_ids for result in known.generate([LONG, asked("what is it")])]
    live = engine.open_session("what", max_tokens_per_frame=4)
    silent = engine.open_stream(StreamSettings(query="what", max_tokens_per_frame=4))
    first = live.push_frame(picture(1), 0.0).token_ids
    calls, layer = 0, engine.model.language_model.layers[-1]
    original = layer.forward

    def forward(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error  # the layers before have left their keys
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", forward)
        with pytest.raises(type(error)):
            engine.generate([asked(png(n + 5), "what is it " * 3) for n in range(4)])
    assert set(engine._steps.running) == {live._number, silent}
    assert [result.token_ids for result in engine.generate([LONG, asked("what is it")])] == expected
    engine.push_frame(silent, picture(1), 0.0)
    (caption,) = of(idle(engine), silent)
    assert isinstance(caption, CaptionEvent)
    assert caption.token_ids == first


def test_an_engine_that_is_closed_while_busy_says_so(known: Engine):
    for threads in (False, True):
        engine = fresh(known, threads=threads)
        longer = asked(png(1), "what is it", max_new_tokens=150, stop_bias=-100.0)
        session, generator = engine.open_session(""), engine.stream(longer)
        next(generator)
        session.push_frame(picture(1), 0.0)  # the answer goes on meanwhile, and is not to end
        engine.close()
        with pytest.raises(DataError, match="The answer was cancelled"):
            next(generator)
        with pytest.raises(DataError, match="The session is closed"):
            session.push_frame(picture(1), 0.5)
        with pytest.raises(DataError, match="The engine is closed"):
            engine.submit(LONG)
        with pytest.raises(DataError, match="The engine is closed"):
            engine.open_session("")
        session.close()
        assert engine.step() == []
        assert not engine._steps.running


def test_hostile_orders_of_calls_are_harmless_or_refused(engine: Engine):
    number = engine.submit(LONG)
    with pytest.raises(DataError, match="The session is closed"):
        engine.push_frame(number, picture(1), 0.0)
    engine.cancel(number)
    engine.cancel(number)
    engine.cancel(12345)
    engine.forget(12345)
    stream = engine.open_stream()
    engine.push_frame(stream, picture(1), 0.0)
    engine.cancel(stream)
    for call in (engine.save, engine.transcript, engine.kv_tokens, engine.image_tokens):
        with pytest.raises(DataError, match="The session is closed"):
            call(stream)
    assert engine.step() == []
    assert engine.submit(LONG) not in (number, stream), "numbers are never used again"
    assert engine.generate([asked("", max_new_tokens=1)])[0].completion_tokens == 1


def test_a_session_restored_in_the_middle_of_a_caption_returns_the_new_frames_words(known: Engine):
    engine = fresh(known)
    number = engine.open_stream(StreamSettings(max_tokens_per_frame=8))
    engine.push_frame(number, picture(1), 1.0)
    while len(engine.stream_state(number).words) < 2:
        engine.step()
    session = known.restore_session(engine.save(number))
    assert [session.push_frame(picture(n), float(n)).timestamp for n in (2, 3)] == [2.0, 3.0]
    session.close()


def test_a_second_threads_call_during_a_step_is_refused_and_changes_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    stream = engine.open_stream(StreamSettings(max_tokens_per_frame=4))
    engine.push_frame(stream, picture(1), 0.0)
    original, refused = KVBatch.extend, []

    def extend(*args: Any) -> torch.Tensor:
        def meddle() -> None:
            for call in (
                lambda: engine.push_frame(stream, picture(2), 0.5),
                lambda: engine.submit(LONG),
                lambda: engine.cancel(stream),
                engine.step,
            ):
                with pytest.raises(RuntimeError, match="not thread-safe"):
                    call()
                refused.append(call)

        thread = threading.Thread(target=meddle)
        thread.start()
        thread.join()
        return original(*args)

    monkeypatch.setattr(KVBatch, "extend", extend)
    events = idle(engine)
    assert [type(outcome) for outcome in of(events, stream)] == [CaptionEvent]
    assert refused


def test_many_threads_ask_through_a_queue_of_the_one_that_steps(known: Engine):
    engine = fresh(known, threads=True, slots=4)
    requests = [asked(png(n % 3), "what is it " * (1 + n % 4)) for n in range(24)]
    expected = [result.token_ids for result in known.generate(requests)]
    incoming: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    threads = [
        threading.Thread(target=lambda own=own: [incoming.put(one) for one in own])
        for own in (list(enumerate(requests))[start::6] for start in range(6))
    ]
    for thread in threads:
        thread.start()
    numbers: dict[int, int] = {}

    def done(events: list[Any]) -> bool:
        while not incoming.empty():
            index, request = incoming.get()
            numbers[engine.submit(request)] = index
        return len([event for event in events if isinstance(event.outcome, GenerationResult | Failed)]) == 24

    events = until(engine, done)
    got = {numbers[event.sequence]: event.outcome for event in events}
    engine.close()
    assert [getattr(got[n], "token_ids", got[n]) for n in range(24)] == expected


def test_the_sampling_of_an_answer_that_has_ended_costs_the_others_nothing(engine: Engine):
    plain = engine._slots._sampler.layout
    number = engine.submit(asked("what is it", temperature=1.0, top_k=5, repetition_penalty=0.5))
    events = []
    while not events:
        events = engine.step()
    engine.cancel(number)
    assert engine._slots._sampler.layout[:2] == plain[:2] == (False, False)
    assert not engine._slots._sampler._processors.in_use
