"""Long prompts are read in pieces, beside all that runs; texts beyond the context are refused unread."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from casa_core.engine.engine import Engine
from casa_core.engine.events import Failed
from casa_core.engine.inputs import count_tokens, prompt_chunk
from casa_core.engine.requests import GenerationDelta, GenerationResult, StreamSettings
from casa_core.errors import DataError
from casa_core.types import Text
from tests.support.core.engine import picture, png, saying
from tests.support.core.loop import asked, forwards, fresh, idle, of, words

BUDGET = 24


@pytest.fixture(scope="module")
def known(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.fixture
def engine(known: Engine) -> Engine:
    return fresh(known, prefill_tokens=BUDGET, slots=4)


def test_a_long_prompt_is_read_in_pieces_while_a_running_answer_gets_a_token_each_step(
    known: Engine, engine: Engine
):
    running = engine.submit(asked("what is it", max_new_tokens=30, stop_bias=-100.0), streamed=True)
    while not engine._steps.running[running].ids:  # pyright: ignore[reportAttributeAccessIssue]
        engine.step()
    long = asked(words(120), max_new_tokens=3)
    number = engine.submit(long)
    tokens = len(prompt_chunk(long.sample, engine.processor, images_withheld=False).ids)
    said = []
    with forwards() as read:
        while number in engine._steps.running:
            engine.step()
            if running in engine._steps.running:
                said.append(len(engine._steps.running[running].ids))
    assert all(after - before == 1 for before, after in pairwise(said))
    pieces = [cost for forward in read for cost in forward.values() if cost > 1]
    assert pieces == [BUDGET] * (tokens // BUDGET) + [tokens % BUDGET] * (tokens % BUDGET > 1)
    assert max(sum(forward.values()) for forward in read) <= BUDGET


def test_prompts_share_what_one_leaves_of_a_step_and_say_what_each_says_alone(known: Engine, engine: Engine):
    requests = [
        asked(png(1), words(70)),
        asked(words(5), png(2), "what " * 70),
        asked("is " * 90),
        asked(png(3, 64, 64)),
    ]
    expected = [known.generate([one])[0].token_ids for one in requests]
    with forwards() as read:
        together = engine.generate(requests)
    assert [result.token_ids for result in together] == expected
    largest = max(known.processor.image_size(64, 64).tokens, known.processor.image_size(48, 64).tokens)
    assert max(sum(forward.values()) for forward in read) <= max(BUDGET, largest + 1)
    assert any(len([cost for cost in forward.values() if cost > 1]) > 1 for forward in read)


def test_a_picture_larger_than_the_budget_is_read_alone(known: Engine):
    engine = fresh(known, prefill_tokens=3, slots=3)
    requests = [asked("it", max_new_tokens=1), asked(png(3, 64, 64), max_new_tokens=2), asked(png(4, 64, 64))]
    size = known.processor.image_size(64, 64).tokens
    with forwards() as read:
        results = engine.generate(requests)
    assert [one.token_ids for one in results] == [known.generate([one])[0].token_ids for one in requests]
    assert size > 3
    assert [sum(forward.values()) for forward in read if max(forward.values()) > size] == [size + 1] * 2


def test_a_stream_goes_on_word_by_word_while_a_long_prompt_is_read(engine: Engine):
    live = engine.open_stream(StreamSettings(max_tokens_per_frame=16))
    engine.submit(asked(words(120), max_new_tokens=2))
    tokens = engine.processor.tokenizer.encode("red " * 15, add_special_tokens=False)
    with saying(engine.model, [*tokens, engine.processor.frame_end_id] * 4):
        engine.push_frame(live, picture(1), 0.0)
        engine.step()
        said = []
        while engine.stream_state(live).words:
            said.append(len(engine.stream_state(live).words))
            engine.step()
    assert said[:3] == [said[0], said[0] + 1, said[0] + 2]


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.characters = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode(self, text: str, **options: Any) -> list[int]:
        self.characters += len(text)
        return self.tokenizer.encode(text, **options)


@pytest.fixture
def counting(known: Engine, monkeypatch: pytest.MonkeyPatch) -> Counting:
    counter = Counting(known.processor.tokenizer)
    monkeypatch.setattr(known.processor, "tokenizer", counter)
    return counter


HUGE = {
    "words": "what is red " * 1_600_000,
    "one word": "x" * 19_000_000,
    "control tokens": "<|image|>" * 2_100_000,
    "spaces": " " * 19_000_000,
}


@pytest.mark.parametrize("text", HUGE)
def test_nineteen_megabytes_are_refused_after_a_few_kilobytes(known: Engine, counting: Counting, text: str):
    with pytest.raises(
        DataError, match=r"A prompt of at least \d+ tokens and an answer of up to 4 "
    ) as caught:
        known.generate([asked(HUGE[text])])
    told = int(str(caught.value).split("at least ")[1].split()[0])
    assert 256 - 4 < told < 256 * 16
    assert counting.characters < 256 * 128
    for call in (
        lambda: known.open_stream(StreamSettings(query=HUGE[text])),
        lambda: known.prompt(known.open_stream(), HUGE[text]),
    ):
        counting.characters = 0
        with pytest.raises(DataError, match=r"A query of at least \d+ tokens is too long for a live stream"):
            call()
        assert counting.characters < 256 * 128
    for number in list(known._steps.running):
        known.cancel(number)


def test_very_many_turns_are_refused_as_unread_as_one_long_text(known: Engine, counting: Counting):
    turns = [Text(role=("user", "assistant")[n % 2], text="") for n in range(5000)]
    with pytest.raises(DataError, match="do not fit the model's context of 256 tokens"):
        known.generate([asked(*turns)])
    pieces = [Text(role="user", text="red ") for n in range(5000)]
    with pytest.raises(DataError, match="do not fit the model's context of 256 tokens"):
        known.generate([asked(*pieces)])
    assert counting.characters < 256 * 64


@pytest.mark.parametrize("answer", [250, 256, 257, 319, 320, 321, 4096])
def test_an_answer_beyond_the_context_is_refused(known: Engine, answer: int):
    with pytest.raises(DataError, match=f"an answer of up to {answer} do not fit the model's context of 256"):
        known.generate([asked("what is it " * 4, max_new_tokens=answer)])


def test_texts_just_inside_the_context_are_answered_and_just_outside_refused(known: Engine):
    def tokens(count: int) -> int:
        return len(prompt_chunk(asked(words(count)).sample, known.processor, images_withheld=False).ids)

    inside = max(count for count in range(1, 300) if tokens(count) <= 256 - 4)
    assert known.generate([asked(words(inside))])[0].prompt_tokens == tokens(inside)
    room = 256 - tokens(inside)
    assert known.generate([asked(words(inside), max_new_tokens=room)])[0].prompt_tokens == tokens(inside)
    with pytest.raises(DataError, match=f"A prompt of {tokens(inside)} tokens and .* up to {room + 1} "):
        known.generate([asked(words(inside), max_new_tokens=room + 1)])


def test_the_count_of_a_text_is_exact_up_to_the_limit_and_a_lower_bound_beyond(known: Engine):
    for text in (words(50), "<|image|>" * 20, "x" * 700, ""):
        exact = len(
            known.processor.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        )
        assert count_tokens(text, known.processor, exact) == exact
        for most in (0, 3, exact // 2):
            assert most < count_tokens(text, known.processor, most) <= exact or exact <= most


def test_a_refused_text_ends_alone_and_waits_for_nothing(engine: Engine):
    long = engine.submit(asked(words(3000)), streamed=True)
    short = engine.submit(asked("what"), streamed=True)
    events = idle(engine)
    assert [type(outcome) for outcome in of(events, long)] == [Failed]
    assert isinstance(of(events, short)[-1], GenerationResult)
    assert isinstance(of(events, short)[-2], GenerationDelta)
    assert engine._slots.free_slots == engine.settings.slots
