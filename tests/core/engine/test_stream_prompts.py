"""Prompts in the middle of a stream: each is answered once, and the words in progress end there."""

from __future__ import annotations

from pathlib import Path

import pytest

from casa_core.engine.engine import Engine
from casa_core.engine.events import Event
from casa_core.engine.requests import CaptionEvent, StreamSettings
from casa_core.errors import DataError
from tests.support.core.engine import picture, recorded
from tests.support.core.loop import fresh, idle

SETTINGS = StreamSettings(query="describe it live", max_tokens_per_frame=8, max_tokens_per_prompt=6)


@pytest.fixture(scope="module")
def known(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.fixture
def engine(known: Engine) -> Engine:
    return fresh(known, slots=2)


def captions(events: list[Event]) -> list[CaptionEvent]:
    found = [event.outcome for event in events]
    assert all(isinstance(outcome, CaptionEvent) for outcome in found)
    return [outcome for outcome in found if isinstance(outcome, CaptionEvent)]


def prompts_of(events: list[Event]) -> list[str | None]:
    return [caption.prompt for caption in captions(events)]


def halfway(engine: Engine, number: int, tokens: int) -> None:
    """Step until a caption has so many tokens."""
    while len(engine.stream_state(number).words) < tokens:
        assert not engine.step()


def test_a_prompt_before_the_first_frame_is_answered_from_the_text_alone(engine: Engine):
    number = engine.open_stream(SETTINGS)
    engine.prompt(number, "what is it")
    with recorded(engine.model) as tape:
        (answer,) = captions(idle(engine))
    processor = engine.processor
    turn = [
        *processor.stream_prompt("describe it live"),
        *processor.further_prompt("what is it", after_frame=False),
    ]
    assert tape.ids[: len(turn)] == turn
    assert (answer.prompt, answer.timestamp) == ("what is it", 0.0)
    assert len(answer.token_ids) <= 6
    assert engine.image_tokens(number) == 0
    engine.push_frame(number, picture(1), 1.0)
    assert prompts_of(idle(engine)) == [None]


def test_a_prompt_ends_the_caption_in_progress_and_its_last_word_is_read_with_it(engine: Engine):
    number = engine.open_stream(SETTINGS)
    engine.push_frame(number, picture(1), 1.0)
    with recorded(engine.model) as tape:
        halfway(engine, number, 3)
        said = list(engine.stream_state(number).words)
        engine.prompt(number, "what is it")
        events = idle(engine)
    caption, answer = captions(events)
    assert (list(caption.token_ids), caption.truncated, caption.prompt) == (said, True, None)
    assert (answer.prompt, answer.timestamp) == ("what is it", 1.0)
    turn = [
        said[-1],
        engine.processor.frame_end_id,
        *engine.processor.further_prompt("what is it", after_frame=True),
    ]
    at = len(engine.processor.stream_prompt("describe it live")) + 1 + len(said) - 1
    assert tape.ids[at : at + len(turn)] == turn


def test_two_prompts_at_once_are_answered_in_order_before_the_frames_that_wait(engine: Engine):
    number = engine.open_stream(SETTINGS)
    for n in range(2):
        engine.push_frame(number, picture(n), float(n))
    halfway(engine, number, 2)
    engine.prompt(number, "what")
    engine.prompt(number, "is it")
    events = idle(engine)
    assert prompts_of(events) == [None, "what", "is it", None]
    assert [caption.timestamp for caption in captions(events)] == [0.0, 0.0, 0.0, 1.0]


def test_a_prompt_during_an_answer_ends_the_answer(engine: Engine):
    number = engine.open_stream(SETTINGS)
    engine.prompt(number, "what")
    halfway(engine, number, 2)
    said = tuple(engine.stream_state(number).words)
    engine.prompt(number, "is it")
    first, second = captions(idle(engine))
    assert (first.prompt, first.token_ids, first.truncated) == ("what", said, True)
    assert second.prompt == "is it"


def test_a_stream_says_the_same_when_prompts_come_before_its_slot_and_prompt_are_there(known: Engine):
    heard = []
    for wait in (False, True):
        engine = fresh(known, slots=2)
        number = engine.open_stream(SETTINGS)
        if wait:
            engine.settled(number)
        engine.prompt(number, "")
        engine.push_frame(number, picture(1), 1.0)
        heard.append([(one.prompt, one.token_ids, one.text_tokens) for one in captions(idle(engine))])
    assert heard[0] == heard[1]
    assert [prompt for prompt, _, _ in heard[0]] == ["", None]


def test_a_query_that_is_too_long_is_refused_and_the_stream_goes_on(engine: Engine):
    number = engine.open_stream(SETTINGS)
    bounds = engine.stream_state(number).bounds
    assert bounds is not None
    most = bounds.recent // 2
    engine.push_frame(number, picture(1), 1.0)
    halfway(engine, number, 2)
    with pytest.raises(DataError, match=f"too long for a live stream(.|\n)*takes {most} at once"):
        engine.prompt(number, "red " * most)
    assert prompts_of(idle(engine)) == [None]
    engine.cancel(number)
    with pytest.raises(DataError, match="too long for a live stream"):
        engine.open_stream(StreamSettings(query="red " * most))


def test_a_caption_of_one_token_is_cut_and_goes_on_as_trained(engine: Engine):
    number = engine.open_stream(StreamSettings(max_tokens_per_frame=1, max_tokens_per_prompt=1))
    with recorded(engine.model) as tape:
        for n in range(3):
            engine.push_frame(number, picture(n), float(n))
        engine.prompt(number, "what")
        events = idle(engine)
    assert len(captions(events)) == 4
    assert all(len(caption.token_ids) <= 1 for caption in captions(events))
    assert engine.stream_state(number).ids == tape.ids
