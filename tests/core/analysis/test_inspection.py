"""Inspected conversations: the engine's own answers, token for token, masked and not, with a map for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from casa_core.analysis.forward import delimiter_ids
from casa_core.analysis.inspection import NEXT_FRAME, SILENT, Inspector
from casa_core.analysis.masking import MASKINGS, masked_attention
from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.engine.engine import Engine
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.processing.processor import CasaProcessor
from casa_core.processing.tokenizer import build_tokenizer
from casa_core.types import Image, Sample, Text
from tests.support.core.engine import Extend, png, recorded, replaced
from tests.support.core.inspect_checkpoint import TEXTS, write

QUESTION = "what colour is it?"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.from_pretrained(write(tmp_path_factory.mktemp("casa"), kind="casa"), device="cpu")


def test_an_inspected_answer_is_the_engines_own_masked_and_not(engine: Engine):
    one = Inspector(engine, seed=4, max_new_tokens=6).question(png(1), QUESTION, "noise")
    parts = (Image(data=png(1)), Text(role="user", text=QUESTION))
    request = GenerationRequest(
        sample=Sample(source="s", sample_id="s", parts=parts), sampling=SamplingParams(max_new_tokens=6)
    )
    result = engine.generate([request])[0]
    chosen = [token.index for token in one.generated]
    assert [one.sequence.ids[place] for place in chosen][: len(result.token_ids)] == list(result.token_ids)
    assert chosen[0] == result.prompt_tokens
    expected = [result.text]
    for what in MASKINGS:
        with masked_attention(engine.model, what, seed=4):
            expected.append(engine.generate([request])[0].text)
    assert [answer.text for answer in one.masked] == expected
    assert [answer.what for answer in one.masked] == [None, *MASKINGS]
    assert one.answer == one.masked[0].text


def test_masking_moves_the_likelihood_of_the_answer(engine: Engine):
    one = Inspector(engine, max_new_tokens=6).question(png(1), QUESTION, "noise")
    free, itself, *_ = one.masked
    assert free.log_likelihood < 0
    assert abs(free.log_likelihood - itself.log_likelihood) > 1e-3


def test_each_chosen_token_has_a_map_of_the_pictures_grid(engine: Engine):
    one = Inspector(engine, max_new_tokens=4).question(png(1), QUESTION, "noise")
    size = engine.processor.image_size(48, 64)
    rows, columns = (n // 2 for n in engine.processor.grid(size))
    assert one.maps is not None
    assert [images[0].shape for images in one.maps.tokens] == [(rows, columns)] * len(one.generated)
    assert all(0 < images[0].sum() < 1 for images in one.maps.tokens)


@contextmanager
def saying_one_word_a_frame(engine: Engine, word: int) -> Iterator[None]:
    """After an image the model generates the word, then waits; after every third frame's image it waits
    at once."""
    frames = 0

    def dictate(run: Extend) -> Extend:
        def extend(batch: KVBatch, rows: Sequence[TokenChunk | None]) -> torch.Tensor:
            nonlocal frames
            last = next(row.ids for row in rows if row is not None)[-1]
            frames += last == engine.processor.image_id
            captions = last == engine.processor.image_id and frames % 3
            logits_AV = torch.zeros_like(run(batch, rows))
            logits_AV[:, word if captions else engine.processor.frame_end_id] = 1e4
            return logits_AV

        return extend

    with replaced(dictate, engine.model):
        yield


def frames_of(count: int) -> list[bytes]:
    return [png(seed) for seed in range(count)]


@pytest.mark.parametrize("template", ["casa-1", "qwen-1"])
def test_a_clip_is_inspected_as_the_stream_that_it_was(template: str, tmp_path: Path):
    engine = Engine.from_pretrained(write(tmp_path, template, kind="casa"), device="cpu")
    word = engine.processor.tokenizer.encode(" red")[0]
    with saying_one_word_a_frame(engine, word), recorded(engine.model) as tape:
        session = engine.open_session("describe it live", max_tokens_per_frame=5)
        for number, frame in enumerate(frames_of(4)):
            session.push_frame(frame, number)
    with saying_one_word_a_frame(engine, word):
        one = Inspector(engine, max_new_tokens=5).clip(frames_of(4), "describe it live", "clip")
    # The last frame's stop token waits for a frame that never comes.
    assert list(one.sequence.ids[:-1]) == tape.ids
    assert [token.picture for token in one.generated] == [0, 0, 1, 1, 2, 3, 3]
    spoken = engine.processor.tokenizer.decode([word])
    assert [token.text for token in one.generated] == [
        spoken,
        NEXT_FRAME,
        spoken,
        NEXT_FRAME,
        SILENT,
        spoken,
        NEXT_FRAME,
    ]
    assert one.answer == " ".join([spoken.strip()] * 3)
    assert one.maps is not None
    assert [list(images) for images in one.maps.tokens] == [[token.picture] for token in one.generated]


def test_words_cut_off_at_the_limit_have_no_stop_token_of_their_own(engine: Engine):
    one = Inspector(engine, max_new_tokens=2).clip(frames_of(2), "", "clip")
    ends = [token.text in (NEXT_FRAME, SILENT) for token in one.generated]
    assert not any(ends)  # this untrained model never stops
    assert [token.picture for token in one.generated] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("settings", "watched", "masked"),
    [
        ({"kind": "cross_attention"}, None, "attend to image tokens alone"),
        ({"kind": "insertion"}, "are part of its text", "are part of its text"),
        ({"kind": "casa", "blind": True}, "every image left out", "every image left out"),
        ({"kind": "casa", "placement": "replace", "layers": "all"}, None, None),
    ],
)
def test_what_a_model_cannot_show_has_a_reason_and_the_rest_is_shown(
    settings: dict[str, Any], watched: str | None, masked: str | None, tmp_path: Path
):
    inspector = Inspector(Engine.from_pretrained(write(tmp_path, **settings), device="cpu"), max_new_tokens=3)
    one = inspector.question(png(1), QUESTION, "noise")
    for refused, expected in ((inspector.no_maps, watched), (inspector.no_masking, masked)):
        assert (refused is None) == (expected is None)
        assert expected is None or expected in refused.why  # type: ignore[union-attr]
    assert (one.maps is None) == (watched is not None)
    assert bool(one.masked) == (masked is None)
    assert one.generated


@pytest.mark.parametrize(
    ("template", "tokens"),
    [("casa-1", ["<|image|>"]), ("qwen-1", ["<|vision_start|>", "<|vision_end|>"])],
)
def test_delimiters_are_the_templates_tokens_around_an_image(template: str, tokens: Sequence[str]):
    tokenizer = build_tokenizer(TEXTS, 300, template)
    found = delimiter_ids(CasaProcessor(tokenizer, template=template))
    assert found == set(tokenizer.convert_tokens_to_ids(list(tokens)))
