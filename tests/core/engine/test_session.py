"""Live streams: what a session runs is the conversation training saw, at constant image memory."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from casa_core.decoding.kv_cache import WindowCache
from casa_core.engine.engine import Engine
from casa_core.engine.inputs import image_chunk, prepare_image
from casa_core.engine.requests import StreamSettings
from casa_core.errors import DataError, MediaError
from casa_core.types import Image, Part, Sample, Text
from tests.support.core.engine import full_logits, picture, png, recorded, saying
from tests.support.evaluate.checkpoint import write_checkpoint

QUERY = "describe it live"
# What is generated about each frame; the third frame and the last are met with silence.
WORDS = ["a red circle", "moves on", "", "blue", ""]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


def script(engine: Engine, words: list[str]) -> list[int]:
    """Tokens a model says: the words of each frame, then the token that ends them."""
    tokens: list[int] = []
    for generated in words:
        tokens += engine.processor.tokenizer.encode(generated, add_special_tokens=False) if generated else []
        tokens.append(engine.processor.frame_end_id)
    return tokens


def conversation(words: list[str], query: str = QUERY) -> Sample:
    parts: list[Part] = [Text(role="user", text=query)] if query else []
    for number, generated in enumerate(words):
        parts.append(Image(role="assistant", timestamp=number / 2))
        parts.append(Text(role="assistant", text=generated, trained=True))
    return Sample(source="test", sample_id="1", parts=tuple(parts))


@pytest.mark.parametrize("query", [QUERY, ""])
def test_a_session_runs_exactly_the_tokens_of_the_encoded_conversation(engine: Engine, query: str):
    session = engine.open_session(query)
    with recorded(engine.model) as tape, saying(engine.model, script(engine, WORDS)):
        events = [session.push_frame(picture(number), number / 2) for number in range(len(WORDS))]
    size = engine.processor.image_size(*picture(0).shape[:2])
    encoded = engine.processor.encode(conversation(WORDS, query), [size] * len(WORDS))
    # The last frame's stop token waits for the next frame, to be read with it.
    assert [*tape.ids, engine.processor.frame_end_id] == list(encoded.input_ids)
    assert [event.text for event in events] == WORDS
    assert [event.timestamp for event in events] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert not any(event.truncated for event in events)
    assert events[-1].text_tokens == session.text_tokens == len(encoded.input_ids) - 1


def test_a_session_sees_what_one_forward_over_the_whole_stream_sees(engine: Engine):
    session = engine.open_session(QUERY)
    with recorded(engine.model) as tape, saying(engine.model, script(engine, WORDS)):
        for number in range(len(WORDS)):
            session.push_frame(picture(number), number / 2)
    images = [prepare_image(picture(number), engine.processor) for number in range(len(WORDS))]
    encoded = engine.processor.encode(conversation(WORDS), [image.size for image in images])
    expected = full_logits(engine.model, image_chunk(encoded.input_ids, encoded.image_positions, images))
    for end, logits_V in zip(tape.ends, tape.logits, strict=True):
        torch.testing.assert_close(logits_V, expected[end - 1], rtol=0, atol=1e-4)


def test_image_memory_is_the_latest_frames_alone_however_long_the_stream(engine: Engine):
    session = engine.open_session(QUERY, max_tokens_per_frame=1)
    layers = len(engine.model.fused_layers())
    text = engine.model.config.text_config
    a_token = 2 * 4 * layers * text.num_key_value_heads * text.head_dim  # keys and values, float32
    held, text_tokens = [], []
    for number in range(50):
        event = session.push_frame(picture(number), number / 2)
        windows = engine._slots.sequences.windows
        held.append((windows.nbytes, session.image_tokens))
        text_tokens.append(event.text_tokens)
    grown = {after - before for before, after in pairwise(text_tokens)}
    assert grown <= {2, 3}, "the frame's two template tokens, and at most the one word allowed"
    assert session.image_tokens == engine.processor.image_size(48, 64).tokens
    slots = engine.settings.slots
    assert set(held) == {(slots * WindowCache.block * a_token, session.image_tokens)}
    small = session.push_frame(picture(0, 16, 16), 25.0)
    assert session.image_tokens == 1
    assert small.timestamp == 25.0


def test_sessions_do_not_hear_each_other(engine: Engine):
    def frames(which: int) -> list[tuple[int, float]]:
        return [(which * 10 + number, number / 2) for number in range(6)]

    def heard(which: int) -> list[tuple[int, ...]]:
        session = engine.open_session(("what colour", "is it", "")[which], max_tokens_per_frame=5)
        return [session.push_frame(picture(seed), time).token_ids for seed, time in frames(which)]

    alone = [heard(which) for which in range(3)]
    assert alone[0] != alone[1]
    sessions = [engine.open_session(query, max_tokens_per_frame=5) for query in ("what colour", "is it", "")]
    together: list[list[tuple[int, ...]]] = [[], [], []]
    for number in range(6):
        for which, session in enumerate(sessions):
            seed, time = frames(which)[number]
            together[which].append(session.push_frame(picture(seed), time).token_ids)
            if number == 3 and which == 1:
                engine.open_session("").close()  # others come and go
    assert together == alone


def test_words_beyond_the_limit_are_cut_and_said_so_and_the_stream_goes_on_as_trained(engine: Engine):
    words = engine.processor.tokenizer.encode("a red circle moves on", add_special_tokens=False)
    session = engine.open_session(QUERY, max_tokens_per_frame=3)
    generated = [*words[:3], *script(engine, ["blue"])]
    with recorded(engine.model) as tape, saying(engine.model, generated):
        first, second = (session.push_frame(picture(number), number / 2) for number in range(2))
    assert (first.token_ids, first.truncated) == (tuple(words[:3]), True)
    assert (second.text, second.truncated) == ("blue", False)
    end, image = engine.processor.frame_end_id, engine.processor.image_id
    frames = [image, *words[:3], end, image, *script(engine, ["blue"])[:-1]]
    assert tape.ids == [*engine.processor.stream_prompt(QUERY), *frames]


def test_a_turns_end_is_silence_too(engine: Engine):
    session = engine.open_session(QUERY)
    with saying(engine.model, [engine.processor.end_id]):
        assert session.push_frame(picture(0), 0.0).text == ""


def test_a_broken_frame_is_refused_and_the_stream_goes_on_as_if_it_had_not_come(engine: Engine):
    smooth, disturbed = (engine.open_session(QUERY, max_tokens_per_frame=4) for _ in range(2))
    heard = [smooth.push_frame(png(number), 0.0).token_ids for number in range(2)]
    first = disturbed.push_frame(png(0), 0.0)
    with pytest.raises(MediaError) as caught:
        disturbed.push_frame(b"not a picture", 0.25)
    assert caught.value.reason == "not_an_image"
    assert [first.token_ids, disturbed.push_frame(png(1), 0.0).token_ids] == heard


def test_a_closed_session_takes_no_frames(engine: Engine):
    session = engine.open_session(QUERY)
    session.push_frame(picture(0), 0.0)
    session.close()
    session.close()
    assert session.text_tokens == 0
    with pytest.raises(DataError, match="The session is closed"):
        session.push_frame(picture(1), 0.5)


def test_a_stream_that_fills_the_context_gets_a_remedy_to_start_anew(engine: Engine):
    session = engine.open_session(settings=StreamSettings(query=QUERY, max_tokens_per_frame=4, bounds=None))
    with pytest.raises(DataError, match="reached the model's context of 256 tokens") as caught:
        deque(session.push_frame(picture(number % 3), number / 2) for number in range(200))
    assert "Open a new session" in caught.value.remedy
    assert 256 - 4 - 8 <= session.text_tokens <= 256


def test_a_blind_model_takes_frames_with_and_without_a_picture_and_hears_the_same(
    tmp_path: Path, engine: Engine
):
    blind = Engine.from_pretrained(write_checkpoint(tmp_path / "blind", blind=True), device="cpu")

    def heard(*frames: bytes | None) -> list[tuple[int, ...]]:
        session = blind.open_session("Describe it live.", max_tokens_per_frame=4)
        return [session.push_frame(data, 0.0).token_ids for data in frames]

    assert heard(None, None, None) == heard(png(0), png(1), None)
    session = blind.open_session("")
    session.push_frame(None, 0.0)
    assert session.image_tokens == 0
    with pytest.raises(DataError, match="A frame has no image"):
        engine.open_session("").push_frame(None, 0.0)
