"""What an engine holds is allocated once and stays as it is, whatever passes through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from casa_core.decoding.bounds import TextBounds
from casa_core.engine.engine import Engine
from casa_core.engine.requests import StreamSettings
from tests.support.core.engine import picture, png
from tests.support.core.loop import asked, fresh, words


@pytest.fixture(scope="module")
def known(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


def test_the_text_kv_of_all_slots_is_allocated_once_and_has_the_stated_size(known: Engine):
    engine = fresh(known, slots=3, preallocate=True, prefill_tokens=100)
    text = known.model.config.text_config
    engine.generate([asked("what is it")])
    cache = engine._slots.sequences.text
    pointers = [store[layer].data_ptr() for store in (cache.keys, cache.values) for layer in store]
    entries = -(-(engine.context + 100) // cache.block) * cache.block  # a padded piece of a prompt beyond it
    numbers = 2 * text.num_key_value_heads * text.head_dim * text.num_hidden_layers * entries
    assert cache.nbytes == 4 * numbers * 3
    session = engine.open_session("what", max_tokens_per_frame=4)
    requests = [
        asked(words(220), max_new_tokens=20, stop_bias=-100.0),
        *(asked(png(n), words(200 - n), max_new_tokens=10) for n in range(6)),
    ]
    numbers_of = [engine.submit(request) for request in requests]
    for n in range(20):
        session.push_frame(picture(n), float(n))
    while engine.busy:
        engine.step()
    assert not engine._steps.running.keys() & set(numbers_of)
    assert [store[layer].data_ptr() for store in (cache.keys, cache.values) for layer in store] == pointers
    assert cache.nbytes == 4 * numbers * 3


@pytest.mark.slow
def test_six_hundred_frames_leave_memory_as_sixty_do(known: Engine):
    bounds = TextBounds(sinks=4, recent=24, slack=8)
    engine = fresh(known, slots=1, answer_slots=0, image_cache_tokens=256)
    settings = StreamSettings(query="live", max_tokens_per_frame=1, bounds=bounds)
    session = engine.open_session(settings=settings)
    held: list[tuple[int, ...]] = []
    frames = [png(n, 16, 16) for n in range(8)]
    for n in range(600):
        session.push_frame(frames[n % 8], n / 2)
        if n % 60 == 59:
            sequences, stream = engine._slots.sequences, engine.stream_state(session._number)
            assert len(stream.ids) <= bounds.limit
            held.append((sequences.text.nbytes, sequences.windows.nbytes, engine._encoder.cache._tokens))
            assert not any((engine._events, stream.waiting, stream.prompts))
    assert held == [held[0]] * 10


def sizes(thing: Any, depth: int = 4) -> dict[str, int]:
    """Lengths of all lists, dicts and queues below an object, by path."""
    found: dict[str, int] = {}

    def look(one: Any, path: str, left: int) -> None:
        if isinstance(one, str | bytes) or path.endswith(("model", "processor", "_spent")):
            return
        if hasattr(one, "__len__"):
            found[path] = len(one)
        names = getattr(one, "__dict__", None) or {
            name: getattr(one, name, None) for name in getattr(type(one), "__slots__", ())
        }
        for name, value in names.items() if left else ():
            look(value, f"{path}.{name}", left - 1)

    look(thing, "engine", depth)
    return found


def test_nothing_grows_with_the_answers_that_have_passed(known: Engine):
    engine = fresh(known, slots=8, image_cache_tokens=64)
    requests = [asked("what is it"[: n % 10], max_new_tokens=1 + n % 2) for n in range(100)]
    engine.generate(requests)
    before = sizes(engine)
    assert before["engine._steps.running"] == 0
    for _ in range(4):
        engine.generate(requests)
    assert sizes(engine) == before
