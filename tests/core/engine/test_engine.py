"""The engine: cached, batched and streamed answers are those of one plain forward a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.engine.engine import Engine
from casa_core.engine.inputs import prompt_chunk
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.errors import DataError, MediaError
from casa_core.types import Image, Part, Sample, Text
from tests.support.core.engine import full_logits, picture, pieces, png, saying
from tests.support.data.media import counting_video
from tests.support.evaluate.checkpoint import write_checkpoint

TOKENS = 10


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


def text(words: str, role: Any = "user") -> Text:
    return Text(role=role, text=words)


CONVERSATIONS: dict[str, list[Part]] = {
    "text alone": [text("what is red")],
    "one picture": [Image(data=png(1)), text("what colour is shape 3")],
    "two pictures at once": [Image(data=png(2)), Image(data=png(3, 16, 80)), text("is it")],
    "a picture in each turn": [
        Image(data=png(4)),
        text("what colour"),
        text("red", "assistant"),
        Image(data=png(5, 80, 16)),
        text("and what moves on"),
    ],
    "a picture after the question": [text("a circle"), Image(data=png(6))],
}


def sample(name: str) -> Sample:
    return Sample(source="test", sample_id=name, parts=tuple(CONVERSATIONS[name]))


def request(name: str, **sampling: Any) -> GenerationRequest:
    params = SamplingParams(**{"max_new_tokens": TOKENS, **sampling})
    return GenerationRequest(sample=sample(name), sampling=params, request_id=name)


def prompt(engine: Engine, name: str) -> TokenChunk:
    return prompt_chunk(sample(name), engine.processor, images_withheld=False)


def plainly(engine: Engine, name: str, tokens: int = TOKENS) -> list[int]:
    """The most likely continuation, each token from a forward over everything before it."""
    whole = prompt(engine, name)
    generated: list[int] = []
    while len(generated) < tokens:
        extended = TokenChunk(
            [*whole.ids, *generated], whole.image_positions, whole.patches_PE, whole.grids, whole.image_tokens
        )
        token = int(full_logits(engine.model, extended)[-1].argmax())
        if token == engine.processor.end_id:
            break
        generated.append(token)
    return generated


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_conversations_read_in_any_pieces_side_by_side_give_the_logits_of_one_forward(
    engine: Engine, data: st.DataObject
):
    names = data.draw(st.lists(st.sampled_from(sorted(CONVERSATIONS)), min_size=1, max_size=3))
    wholes = [prompt(engine, name) for name in names]
    count = data.draw(st.integers(0, 4), label="cuts")
    cuts = [
        sorted(data.draw(st.sets(st.integers(1, len(whole.ids) - 1), min_size=count, max_size=count)))
        for whole in wholes
    ]
    expected = [full_logits(engine.model, whole) for whole in wholes]
    state = KVBatch(engine.model, len(wholes))
    for turn, rows in enumerate(zip(*map(pieces, wholes, cuts), strict=True)):
        logits_BV = state.extend(rows)
        for row, (whole, own) in enumerate(zip(wholes, cuts, strict=True)):
            end = [*own, len(whole.ids)][turn]
            torch.testing.assert_close(logits_BV[row], expected[row][end - 1], rtol=0, atol=1e-4)
            assert state.lengths[row] == end


def test_answers_are_the_plain_ones_alone_and_in_a_batch(engine: Engine):
    expected = {name: plainly(engine, name) for name in CONVERSATIONS}
    assert len({tuple(ids) for ids in expected.values()}) > 1, "the answers depend on what was asked"
    for name, ids in expected.items():
        assert list(engine.generate([request(name)])[0].token_ids) == ids
    together = engine.generate([request(name) for name in CONVERSATIONS])
    assert {result.request_id: list(result.token_ids) for result in together} == expected


def test_rows_of_a_batch_end_on_their_own(engine: Engine):
    short, long = engine.generate([request("one picture", max_new_tokens=2), request("text alone")])
    assert list(short.token_ids) == plainly(engine, "one picture", 2)
    assert list(long.token_ids) == plainly(engine, "text alone")


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_streamed_pieces_join_to_the_plain_answer(engine: Engine, name: str):
    result = engine.generate([request(name)])[0]
    deltas = list(engine.stream(request(name)))
    assert "".join(delta.text for delta in deltas) == result.text
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [result.finish_reason]
    last = deltas[-1]
    counts = (last.prompt_tokens, last.image_tokens, last.completion_tokens)
    assert counts == (result.prompt_tokens, result.image_tokens, result.completion_tokens)


def test_token_accounts_keep_text_and_images_apart(engine: Engine):
    (result,) = engine.generate([request("two pictures at once", max_new_tokens=3)])
    whole = prompt(engine, "two pictures at once")
    assert result.prompt_tokens == len(whole.ids)
    assert result.image_tokens == sum(whole.image_tokens) == 3 * 4 + 1 * 5


def ids_of(engine: Engine, words: str) -> list[int]:
    return list(engine.processor.tokenizer.encode(words, add_special_tokens=False))


def test_the_end_token_stops_an_answer_and_is_counted_but_not_said(engine: Engine):
    words = ids_of(engine, "red green")
    with saying(engine.model, [*words, engine.processor.end_id]):
        (result,) = engine.generate([request("text alone")])
    assert (result.text, result.finish_reason) == ("red green", "stop")
    assert list(result.token_ids) == words
    assert result.completion_tokens == len(words) + 1


def test_the_limit_stops_an_answer_that_would_go_on(engine: Engine):
    words = ids_of(engine, "red green blue")
    with saying(engine.model, words):
        (result,) = engine.generate([request("text alone", max_new_tokens=len(words))])
    assert (result.text, result.finish_reason) == ("red green blue", "length")
    assert result.completion_tokens == len(words)


@pytest.mark.parametrize("stop", [("green",), ("n bl",), ("moves", "een blue"), ("blue", "green")])
def test_a_stop_string_ends_the_answer_before_it_streamed_too(engine: Engine, stop: tuple[str, ...]):
    words = ids_of(engine, "red green blue and on")
    first = min("red green blue".index(one) for one in stop if one in "red green blue")
    asked = request("text alone", stop=stop, max_new_tokens=40)
    with saying(engine.model, words):
        (result,) = engine.generate([asked])
    assert (result.text.strip(), result.finish_reason) == ("red green blue"[:first].strip(), "stop")
    assert result.completion_tokens < len(words)
    with saying(engine.model, words):
        streamed = list(engine.stream(asked))
    assert "".join(delta.text for delta in streamed) == result.text


def test_a_character_of_several_tokens_is_streamed_whole(engine: Engine):
    words = ids_of(engine, "red é 🙂 on")
    with saying(engine.model, [*words, engine.processor.end_id]):
        pieces = [delta.text for delta in engine.stream(request("text alone", max_new_tokens=40))]
    assert "".join(pieces) == "red é 🙂 on"
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_seed_repeats_a_draw_in_any_company(engine: Engine):
    def draw(seed: int) -> GenerationRequest:
        return request("one picture", temperature=1.5, seed=seed)

    alone = {seed: engine.generate([draw(seed)])[0].token_ids for seed in range(4)}
    assert len(set(alone.values())) > 1
    together = engine.generate([request("text alone"), *(draw(seed) for seed in range(4))])
    assert {seed: result.token_ids for seed, result in enumerate(together[1:])} == alone


def test_a_conversation_beyond_the_context_is_refused_before_anything_runs(engine: Engine):
    limit = engine.info["context"]
    room = limit - len(prompt(engine, "one picture").ids)
    with saying(engine.model, [engine.processor.end_id]):
        engine.generate([request("one picture", max_new_tokens=room)])
    for answer in (lambda asked: engine.generate([asked]), lambda asked: list(engine.stream(asked))):
        with pytest.raises(DataError, match=f"do not fit the model's context of {limit} tokens"):
            answer(request("one picture", max_new_tokens=room + 1))


def test_a_picture_without_bytes_or_with_broken_ones_is_refused_by_name(engine: Engine):
    for data, reason in ((None, "missing_image"), (b"", "empty_file"), (b"not a picture", "not_an_image")):
        asked = Sample(source="test", sample_id="7", parts=(Image(data=data), text("what is it")))
        with pytest.raises(MediaError) as caught:
            engine.generate([GenerationRequest(sample=asked)])
        assert caught.value.reason == reason


def test_frames_of_a_video_are_the_pictures_shown_at_their_times(engine: Engine, tmp_path: Path):
    video = counting_video(tmp_path / "clip.mp4")
    frames = [Image(data=video, timestamp=time) for time in (0.0, 1.0, 3.5)]
    asked = Sample(
        source="test", sample_id="clip", parts=(*frames, Image(data=png(1)), text("what moves on"))
    )
    whole = prompt_chunk(asked, engine.processor, images_withheld=False)
    from casa_core.media.decode import VideoFrames

    shown = [*VideoFrames(video).at([0.0, 1.0, 3.5]), picture(1)]
    for rgb, patches_PE in zip(shown, whole.patches_PE, strict=True):
        expected = engine.processor.patches(rgb, engine.processor.image_size(*rgb.shape[:2]))
        assert torch.equal(patches_PE, expected)


def test_a_blind_model_reads_the_same_text_and_no_picture(tmp_path: Path):
    blind = Engine.from_pretrained(write_checkpoint(tmp_path / "blind", blind=True), device="cpu")
    assert blind.info["blind"]
    answers = []
    for data in (png(1), png(2), None):
        asked = Sample(source="test", sample_id="1", parts=(Image(data=data), text("what color")))
        (result,) = blind.generate(
            [GenerationRequest(sample=asked, sampling=SamplingParams(max_new_tokens=5))]
        )
        assert result.image_tokens == 0
        answers.append(result.token_ids)
    assert len(set(answers)) == 1
    seeing = Sample(source="test", sample_id="1", parts=(Image(data=png(1)), text("what color")))
    text_of = [
        prompt_chunk(seeing, blind.processor, images_withheld=withheld).ids for withheld in (True, False)
    ]
    assert text_of[0] == text_of[1]


def test_no_request_is_no_answer(engine: Engine):
    assert engine.generate([]) == []
