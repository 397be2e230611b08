"""Frames by their deadlines, late and dropped ones counted; what is taken in, refused, or fails."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from casa_core.decoding.bounds import TextBounds
from casa_core.engine import image_encoder
from casa_core.engine.engine import Engine
from casa_core.engine.events import Failed, FrameDropped, Overloaded
from casa_core.engine.load import WINDOW_S
from casa_core.engine.requests import CaptionEvent, GenerationResult, StreamSettings
from casa_core.errors import ConfigError, DataError, MediaError
from tests.support.core.engine import picture, png
from tests.support.core.loop import asked, fresh, idle, of


@pytest.fixture(scope="module")
def known(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


SHORT = StreamSettings(max_tokens_per_frame=1)


def test_frames_are_read_by_their_deadlines_where_a_step_does_not_hold_all(known: Engine):
    cost = known.processor.image_size(48, 64).tokens + 3
    engine = fresh(known, prefill_tokens=2 * cost, slots=8)
    streams = [engine.open_stream(SHORT) for _ in range(6)]
    for number in streams:
        engine.settled(number)
    now = time.monotonic() + 100
    for number, due in zip(streams, (5, 1, 4, 0, 3, 2), strict=True):
        engine.push_frame(number, picture(number), 0.0, due=now + due)
    order = []
    while engine.busy:
        order.append({event.sequence for event in engine.step()})
    expected = [{streams[3], streams[1]}, {streams[5], streams[4]}, {streams[2], streams[0]}]
    assert [numbers for numbers in order if numbers] == expected
    assert engine.load.late_frames == 0


def test_a_late_caption_says_by_how_much_and_is_counted(known: Engine):
    engine = fresh(known)
    number = engine.open_stream(SHORT)
    engine.push_frame(number, picture(1), 0.0, due=time.monotonic() - 7.0)
    engine.push_frame(number, picture(2), 0.5, due=time.monotonic() + 100.0)
    late, early = of(idle(engine), number)
    assert isinstance(late, CaptionEvent)
    assert isinstance(early, CaptionEvent)
    assert 7.0 < late.late_s < 8.0
    assert early.late_s == 0.0
    assert (engine.load.captions, engine.load.late_frames) == (2, 1)


def test_newer_frames_replace_the_oldest_and_each_is_counted_in_order(known: Engine):
    engine = fresh(known, queued_frames=2)
    number = engine.open_stream(SHORT)
    for n in range(7):
        engine.push_frame(number, picture(n), float(n))
    outcomes = of(idle(engine), number)
    dropped = [outcome.timestamp for outcome in outcomes if isinstance(outcome, FrameDropped)]
    captions = [outcome.timestamp for outcome in outcomes if isinstance(outcome, CaptionEvent)]
    assert (dropped, captions) == ([0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0])
    assert engine.load.dropped_frames == 5


def test_answers_wait_up_to_the_limit_beside_those_that_have_a_free_slot(known: Engine):
    engine = fresh(known, slots=2, waiting=3)
    numbers = [engine.submit(asked("what is it")) for _ in range(5)]
    with pytest.raises(Overloaded, match="3 answers are waiting already") as caught:
        engine.submit(asked("what is it"))
    assert caught.value.retry_after_s == WINDOW_S, "nothing is known yet"
    engine.cancel(numbers[4])
    numbers[4] = engine.submit(asked("what is it"))
    events = idle(engine)
    assert all(isinstance(of(events, number)[0], GenerationResult) for number in numbers)
    numbers = [engine.submit(asked("what is it")) for _ in range(5)]
    with pytest.raises(Overloaded) as caught:
        engine.submit(asked("what is it"))
    assert caught.value.retry_after_s == 3 / (5 / WINDOW_S), "five answers have ended in the window"


def test_slots_are_kept_for_answers(known: Engine):
    engine = fresh(known, slots=4, answer_slots=2)
    streams = [engine.open_stream() for _ in range(2)]
    with pytest.raises(Overloaded, match="2 live streams are open already") as caught:
        engine.open_stream()
    assert caught.value.retry_after_s == WINDOW_S
    assert len(engine.generate([asked("what is it"), asked("is it")])) == 2
    engine.cancel(streams[0])
    engine.open_stream()


def test_streams_that_take_nearly_all_the_time_keep_others_out(known: Engine):
    engine = fresh(known, threads=True, slots=8)
    lockstep = fresh(known, slots=8)
    unhurried = fresh(known, threads=True, slots=8, live_share=math.inf)
    for one in (engine, lockstep, unhurried):
        for _ in range(3):
            one.open_stream()
        one.load.live.add(0.7 * WINDOW_S)
    assert engine.load.share_with(3) == pytest.approx(0.7 * 4 / 3)
    with pytest.raises(Overloaded, match="they would need 93% of it, and 90% are theirs") as caught:
        engine.open_stream()
    assert caught.value.retry_after_s == WINDOW_S
    lockstep.open_stream()
    unhurried.open_stream()
    engine.load.live.add(-0.1 * WINDOW_S)
    engine.open_stream()
    engine.close()


def test_the_time_of_the_tower_counts_as_that_of_the_steps(known: Engine):
    engine = fresh(known, threads=True)
    engine.open_stream()
    engine.load.embedding.add(0.5 * WINDOW_S)
    with pytest.raises(Overloaded, match="they would need 100%"):
        engine.open_stream()
    engine.close()


def test_errors_of_one_request_end_it_alone_and_free_its_slot(known: Engine):
    engine = fresh(known, slots=4)
    expected = known.generate([asked("what is it")])[0].token_ids
    good = engine.submit(asked("what is it"))
    broken = engine.submit(asked(b"no picture", "what is it"))
    long = engine.submit(asked("red " * 900))
    unusable = engine.submit(asked("what", temperature=1.0, top_k=2**70))
    events = idle(engine)
    kinds = {number: of(events, number)[0] for number in (good, broken, long, unusable)}
    errors = {number: kind.error for number, kind in kinds.items() if isinstance(kind, Failed)}
    assert [type(errors[number]) for number in (broken, long)] == [MediaError, DataError]
    assert "long long" in str(errors[unusable]), "2 ** 70 is no 64-bit number"
    result = kinds[good]
    assert isinstance(result, GenerationResult)
    assert result.token_ids == expected
    assert (engine._slots.free_slots, engine.load.failed, engine.load.answers) == (4, 3, 1)


def test_numbers_that_are_not_finite_end_one_answer_and_leave_its_slot_clean(
    known: Engine, monkeypatch: pytest.MonkeyPatch
):
    engine = fresh(known, slots=2, answer_slots=0, image_cache_tokens=0)
    long, short = asked("what is it " * 12, max_new_tokens=6), asked("is it", max_new_tokens=6)
    expected = [known.generate([one])[0].token_ids for one in (long, short)]
    original = image_encoder.embed

    def poisoned(images: Any, model: Any, tower: Any) -> list[torch.Tensor]:
        return [torch.full_like(features_NC, torch.nan) for features_NC in original(images, model, tower)]

    for _ in range(2):
        numbers = [engine.submit(asked("is it")), 0]
        with monkeypatch.context() as patch:
            patch.setattr(image_encoder, "embed", poisoned)
            numbers[1] = engine.submit(asked(png(1), "what is it " * 12))
            events = idle(engine)
        (failed,) = of(events, numbers[1])
        assert isinstance(failed, Failed)
        assert "its logits hold NaN" in str(failed.error)
        assert isinstance(of(events, numbers[0])[0], GenerationResult)
        assert [result.token_ids for result in engine.generate([short, long])] == expected[::-1]
        assert engine._slots.free_slots == 2


def test_a_stream_with_bounds_that_cannot_hold_a_frame_or_exceed_the_context_is_refused(known: Engine):
    for bounds in (TextBounds(sinks=0, recent=2, slack=1), TextBounds(sinks=64, recent=190, slack=3)):
        with pytest.raises(ConfigError, match="cannot serve a stream"):
            known.open_stream(StreamSettings(bounds=bounds))
    for settings in ({"max_tokens_per_frame": 0}, {"max_tokens_per_prompt": -1}, {"deadline_s": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            StreamSettings(**settings)
    least = known.open_session(
        settings=StreamSettings(bounds=TextBounds(sinks=0, recent=4, slack=1), max_tokens_per_frame=1)
    )
    assert all(least.push_frame(picture(n), float(n)).text_tokens <= 5 for n in range(20))


def test_a_frame_that_cannot_be_read_is_refused_behind_another_of_the_same_shape(known: Engine):
    engine = fresh(known)
    number = engine.open_stream(StreamSettings(max_tokens_per_frame=4))
    for n in range(2):
        engine.push_frame(number, picture(n), float(n))
    engine.push_frame(number, picture(2)[:0], 2.0)
    engine.push_frame(number, None, 3.0)
    kinds = [(type(outcome).__name__, outcome.timestamp) for outcome in of(idle(engine), number)]  # pyright: ignore
    assert sorted(kinds) == [
        ("CaptionEvent", 0.0),
        ("CaptionEvent", 1.0),
        ("FrameRefused", 2.0),
        ("FrameRefused", 3.0),
    ]
    assert engine.load.refused_frames == 2


def test_what_an_engine_holds_is_told_while_it_works_and_is_nothing_afterwards(known: Engine):
    engine = fresh(known, slots=2, answer_slots=1)
    stream = engine.open_stream(SHORT)
    engine.settled(stream)
    for number in range(2):
        engine.push_frame(stream, picture(number), float(number))
    for text in ("what is it", "and this"):
        engine.submit(asked(png(1), text))
    held = engine.current_load()
    assert (held.streams, held.frames_waiting, held.answers, held.answers_waiting) == (1, 2, 2, 2)
    assert (held.slots, held.slots_used) == (2, 1)
    assert held.kv_tokens == engine.kv_tokens(stream)
    bounds = engine.stream_state(stream).bounds
    assert bounds is not None
    assert held.kv_capacity == bounds.limit + engine.context
    results = [event.outcome for event in idle(engine) if isinstance(event.outcome, GenerationResult)]
    assert len(results) == 2
    assert all(result.first_token_s > 0 for result in results)
    assert engine.current_load().image_tokens == engine.image_tokens(stream) > 0
    engine.cancel(stream)
    after = engine.current_load()
    assert (after.streams, after.answers, after.slots_used, after.kv_tokens) == (0, 0, 0, 0)
    assert after.tokens == engine.load.tokens > 0
