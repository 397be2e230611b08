"""Log-probabilities of an answer's tokens: the model's own, however the tokens were chosen and batched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from casa_core.engine.engine import Engine
from casa_core.engine.inputs import prompt_chunk
from casa_core.engine.requests import GenerationRequest, GenerationResult, TokenLogprob
from tests.support.core.engine import full_logits, png
from tests.support.core.loop import asked

SETTINGS = {"max_new_tokens": 6, "stop_bias": -100.0}


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint, device="cpu")


def expected(engine: Engine, request: GenerationRequest, result: GenerationResult) -> torch.Tensor:
    """(answer, vocabulary) log-probabilities of one forward over prompt and answer."""
    prompt = prompt_chunk(request.sample, engine.processor, images_withheld=False)
    logits_LV = full_logits(engine.model, replace(prompt, ids=[*prompt.ids, *result.token_ids]))
    return logits_LV[len(prompt.ids) - 1 : -1].double().log_softmax(-1)


SAMPLED = {"temperature": 1.5, "seed": 1, "top_k": 5, "repetition_penalty": 2.0}


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_they_are_those_of_one_forward_over_the_whole(engine: Engine, sampling: dict[str, float]):
    request = asked(png(1), "what is it", logprobs=3, **SETTINGS, **sampling)
    alone = engine.generate([request])[0]
    others = [asked("is it red", **SETTINGS), asked(png(2), "is it", logprobs=0, **SETTINGS)]
    plain, together, bare = engine.generate([others[0], request, others[1]])
    assert together.token_ids == alone.token_ids
    assert plain.logprobs == ()
    assert all(one.top == () for one in bare.logprobs)
    for result in (alone, together):
        assert [one.token for one in result.logprobs] == list(result.token_ids)
        for one, logprob_V in zip(result.logprobs, expected(engine, request, result), strict=True):
            assert one.logprob == pytest.approx(float(logprob_V[one.token]), abs=1e-4)
            top = logprob_V.topk(3)
            assert [other.logprob for other in one.top] == pytest.approx(top.values.tolist(), abs=1e-4)
            assert one.text == engine.processor.tokenizer.decode([one.token])


def test_a_streamed_answers_pieces_hold_each_of_them_once(engine: Engine):
    request = asked(png(1), "what is it", logprobs=2, **SETTINGS)
    told: list[TokenLogprob] = [one for delta in engine.stream(request) for one in delta.logprobs]
    assert tuple(told) == engine.generate([request])[0].logprobs


def test_a_slot_that_asked_for_them_does_not_leave_the_wish_behind(engine: Engine):
    engine.generate([asked("is it", logprobs=1, **SETTINGS)])
    assert engine.generate([asked("is it red", **SETTINGS)])[0].logprobs == ()
