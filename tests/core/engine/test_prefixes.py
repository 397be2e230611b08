"""A further turn of a conversation reads only what is new, and never another conversation's pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.engine.engine import Engine
from casa_core.engine.image_encoder import Encoded
from casa_core.engine.inputs import prompt_chunk
from casa_core.engine.prefixes import Prefixes
from casa_core.engine.requests import GenerationRequest, GenerationResult
from casa_core.types import Image, Part, Text
from tests.core.engine.test_session_fusions import engine_of
from tests.support.core.engine import png
from tests.support.core.loop import asked, fresh, words


@pytest.fixture(scope="module")
def known(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.fixture
def engine(known: Engine) -> Engine:
    return fresh(known, slots=3)


def first_turn(seed: int | None) -> list[Part]:
    shown: list[Part] = [] if seed is None else [Image(data=png(seed))]
    return [*shown, Text(role="user", text=words(24) + "what is it")]


def request(parts: list[Part], **sampling: Any) -> GenerationRequest:
    return asked(*parts, **{"max_new_tokens": 5, **sampling})


def second_turn(engine: Engine, first: list[Part], answer: GenerationResult, end: str) -> GenerationRequest:
    return request([*first, Text(role="assistant", text=answer.text), Text(role="user", text=end)])


def prompt_ids(engine: Engine, of: GenerationRequest) -> list[int]:
    return list(prompt_chunk(of.sample, engine.processor, images_withheld=False).ids)


def same(one: list[int], other: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


def plain(known: Engine, of: GenerationRequest) -> tuple[int, ...]:
    return fresh(known, slots=1, answer_slots=0).generate([of])[0].token_ids


@pytest.mark.parametrize("seed", [None, 1])
def test_the_second_turn_reads_only_what_is_new(known: Engine, engine: Engine, seed: int | None):
    first = first_turn(seed)
    (answer,) = engine.generate([request(first)])
    assert answer.cached_tokens == 0
    following = second_turn(engine, first, answer, "and what else")
    (next_answer,) = engine.generate([following])
    # What was run: the prompt, and the answer but for its last token, which nothing followed.
    run = [*prompt_ids(engine, request(first)), *answer.token_ids[: answer.completion_tokens - 1]]
    expected = same(run, prompt_ids(engine, following))
    assert next_answer.cached_tokens == expected >= len(prompt_ids(engine, request(first)))
    assert next_answer.token_ids == plain(known, following)


def test_the_same_words_about_another_picture_are_read_again(known: Engine, engine: Engine):
    engine.generate([request(first_turn(1))])
    (other,) = engine.generate([request(first_turn(2))])
    assert other.cached_tokens == 0
    assert other.token_ids == plain(known, request(first_turn(2)))


def test_a_changed_last_turn_is_cut_back_to_what_stayed(known: Engine, engine: Engine):
    first = first_turn(1)
    (answer,) = engine.generate([request(first)])
    turns = [second_turn(engine, first, answer, end) for end in ("and what else", "what a circle", "live")]
    for turn in turns:
        (result,) = engine.generate([turn])
        assert result.cached_tokens >= len(prompt_ids(engine, request(first)))
        assert result.token_ids == plain(known, turn)


def test_a_changed_picture_in_the_last_turn_keeps_all_before_it(known: Engine, engine: Engine):
    def turn(seed: int) -> GenerationRequest:
        return request([*first_turn(1), Text(role="assistant", text="red"), Image(data=png(seed))])

    engine.generate([turn(3)])
    (result,) = engine.generate([turn(4)])
    whole = prompt_chunk(turn(4).sample, engine.processor, images_withheld=False)
    assert result.cached_tokens == whole.image_positions[-1]
    assert result.token_ids == plain(known, turn(4))


@pytest.mark.parametrize("name", ["insertion", "qformer"])
def test_insertion_continues_whole_conversations_only(name: str):
    known = engine_of(name, "helium")
    engine = fresh(known, slots=2)
    first = [Image(data=png(1, 16, 16)), Text(role="user", text=words(20))]
    engine.generate([request(first)])
    changed = request([*first[:1], Text(role="user", text=words(19) + "what")])
    (result,) = engine.generate([changed])
    assert result.cached_tokens == 0
    assert result.token_ids == plain(known, changed)


def test_warm_slots_are_given_up_oldest_first(engine: Engine):
    turns = [request([Text(role="user", text=f"{start} " * 24)]) for start in ("red", "what", "is", "it")]
    for turn in turns:  # three slots: the last takes the first one's
        engine.generate([turn])
    assert [engine.generate([turn])[0].cached_tokens > 18 for turn in turns[:0:-1]] == [True] * 3
    assert engine.generate(turns[:1])[0].cached_tokens == 0
    slots = engine._slots.warm_slots
    assert len(slots) == 3
    engine.open_stream()
    engine.step()
    assert engine._slots.warm_slots == slots[1:]


def test_reusing_one_slot_never_changes_what_another_says(known: Engine):
    engine = fresh(known, slots=4)
    conversations = [request(first_turn(seed)) for seed in (1, 2, None)]
    answers = engine.generate(conversations)
    turns = [
        second_turn(engine, list(of.sample.parts), answer, end)
        for of, answer in zip(conversations, answers, strict=True)
        for end in ("and what", "live")
    ]
    expected = [plain(known, turn) for turn in turns]
    for _ in range(3):
        together = engine.generate(turns)
        assert [result.token_ids for result in together] == expected
    assert engine.load.cached_tokens > 0


@pytest.mark.parametrize(("name", "expected"), [("ca-shared", 3000), ("insertion", None)])
def test_a_prompt_is_looked_up_in_many_long_ones_at_once(name: str, expected: int | None):
    sequences, prefixes = KVBatch(engine_of(name, "helium").model, 128), Prefixes()
    ids = list(range(4000))
    for slot in range(128):
        prefixes.keep(slot, Encoded(TokenChunk(ids), ()), (), 4000)
        sequences.states[slot].text_tokens = 4000
    wanted = Encoded(TokenChunk([*ids[:3000], *range(5000, 6000)]), ())
    started = time.perf_counter()
    found = prefixes.find(wanted, range(128), sequences)
    assert time.perf_counter() - started < 0.05, "each takes a moment, not one for every token"
    assert (found and found.tokens) == expected
