"""Logits processors: each slot's are those of plain lists and loops, and nothing is read back to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from casa_core.engine.logits import LogitsProcessors
from casa_core.engine.requests import SamplingParams
from casa_core.engine.sampling import Sampler
from casa_core.errors import DataError

VOCABULARY = 6


@dataclass
class PlainRow:
    """The reference: one slot, with lists and loops."""

    params: SamplingParams
    stop_ids: Sequence[int] = ()
    generated: list[int] = field(default_factory=list)
    average: list[np.float32] = field(default_factory=lambda: [np.float32(0)] * VOCABULARY)

    def observe(self, token: int) -> None:
        if token in self.stop_ids:
            return
        self.generated.append(token)
        decay = np.float32(self.params.repetition_decay)
        self.average = [one * decay for one in self.average]
        self.average[token] += np.float32(1)

    def forbidden(self) -> set[int]:
        size = self.params.no_repeat_ngram_size
        window = self.generated[-self.params.no_repeat_window :]
        if size == 0 or len(window) < size:
            return set()
        grams = {tuple(window[start : start + size]) for start in range(len(window) - size + 1)}
        start = tuple(window[len(window) - (size - 1) :])
        return {token for token in range(VOCABULARY) if (*start, token) in grams}

    def apply(self, logits: Sequence[float]) -> list[float]:
        out = []
        for token, logit in enumerate(logits):
            value = np.float32(logit)
            value = value - np.float32(self.params.repetition_penalty) * self.average[token]
            if token in self.stop_ids:
                value += np.float32(self.params.stop_bias)
            out.append(float("-inf") if token in self.forbidden() else float(value))
        return out


@st.composite
def processing(draw: st.DrawFn) -> SamplingParams:
    size = draw(st.integers(0, 4))
    return SamplingParams(
        repetition_penalty=draw(st.sampled_from([0.0, 0.3, 2.0])),
        repetition_decay=draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        no_repeat_ngram_size=size,
        no_repeat_window=draw(st.integers(max(size, 1), 9)),
        stop_bias=draw(st.sampled_from([0.0, -1.5, 0.7])),
    )


STOPS = st.sets(st.integers(0, VOCABULARY - 1), max_size=3).map(sorted)
TOKEN = st.integers(0, VOCABULARY - 1)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_rows_side_by_side_are_processed_like_plain_lists_one_by_one(data: st.DataObject):
    plain = [
        PlainRow(params, stops)
        for params, stops in data.draw(st.lists(st.tuples(processing(), STOPS), min_size=1, max_size=4))
    ]
    processors = LogitsProcessors(len(plain), VOCABULARY)
    for number, one in enumerate(plain):
        processors.set_slot(number, one.params, stop_ids=one.stop_ids)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    for _ in range(data.draw(st.integers(1, 14))):
        logits_BV = torch.randn(len(plain), VOCABULARY, generator=generator)
        given_BV = logits_BV.clone()
        expected = torch.tensor([one.apply(row.tolist()) for one, row in zip(plain, logits_BV, strict=True)])
        assert torch.equal(processors.apply(logits_BV), expected)
        assert torch.equal(logits_BV, given_BV), "the model's logits are left as they are"
        # Few different tokens, so that n-grams do repeat.
        tokens = data.draw(st.lists(st.integers(0, 2) | TOKEN, min_size=len(plain), max_size=len(plain)))
        active = data.draw(st.lists(st.booleans(), min_size=len(plain), max_size=len(plain)))
        processors.observe(torch.tensor(tokens), torch.tensor(active))
        for one, token, on in zip(plain, tokens, active, strict=True):
            if on:
                one.observe(token)


def one_slot(params: SamplingParams, **more: Any) -> LogitsProcessors:
    processors = LogitsProcessors(1, VOCABULARY)
    processors.set_slot(0, params, **more)
    return processors


def after(processors: LogitsProcessors, tokens: Sequence[int]) -> list[float]:
    """What logits of 0 become once these tokens were generated."""
    for token in tokens:
        processors.observe(torch.tensor([token]))
    return processors.apply(torch.zeros(1, VOCABULARY))[0].tolist()


def test_saying_a_token_costs_it_the_penalty_and_each_further_token_forgives_a_share():
    processors = one_slot(SamplingParams(repetition_penalty=2.0, repetition_decay=0.5))
    assert after(processors, [3]) == [0, 0, 0, -2, 0, 0]
    assert after(processors, [1]) == [0, -2, 0, -1, 0, 0]
    assert after(processors, [1]) == [0, -3, 0, -0.5, 0, 0]


def test_an_ngram_is_said_once_within_the_window():
    processors = one_slot(SamplingParams(no_repeat_ngram_size=2, no_repeat_window=4))
    never = float("-inf")
    assert after(processors, [1, 2, 1]) == [0, 0, never, 0, 0, 0]
    assert after(processors, [0, 0]) == [never, 0, 0, 0, 0, 0], "1 2 has left the window of four, 0 0 has not"
    assert after(processors, [1]) == [never, 0, 0, 0, 0, 0], "of the two pairs after 1 only 1 0 is left"


def test_silence_is_no_repetition():
    processors = one_slot(
        SamplingParams(repetition_penalty=1.0, no_repeat_ngram_size=2, no_repeat_window=3), stop_ids=[5]
    )
    quiet = one_slot(
        SamplingParams(repetition_penalty=1.0, no_repeat_ngram_size=2, no_repeat_window=3), stop_ids=[5]
    )
    assert after(processors, [5, 1, 5, 5, 2, 5, 1, 5, 5]) == after(quiet, [1, 2, 1])
    assert after(quiet, [])[2] == float("-inf"), "the pair 1 2 is found across the frames"


@settings(max_examples=50, deadline=None)
@given(stops=STOPS.filter(bool), generated=st.lists(TOKEN, max_size=30))
def test_a_stop_token_is_never_forbidden(stops: list[int], generated: list[int]):
    params = SamplingParams(no_repeat_ngram_size=1, stop_bias=0.5)
    logits = after(one_slot(params, stop_ids=stops, history=generated[:7]), generated)
    assert [logits[stop] for stop in stops] == [0.5] * len(stops)
    assert {token for token, logit in enumerate(logits) if logit == float("-inf")} == {*generated} - {*stops}


def test_the_prompt_counts_as_said_only_where_it_is_given_as_history():
    params = SamplingParams(
        repetition_penalty=1.0, repetition_decay=0.7, no_repeat_ngram_size=2, no_repeat_window=5
    )
    history = [0, 5, 1, 2, 3, 0, 5, 2, 4, 1, 2, 1]
    assert after(one_slot(params), []) == [0] * VOCABULARY
    replayed = after(one_slot(params, stop_ids=[5], history=history), [])
    assert replayed == pytest.approx(after(one_slot(params, stop_ids=[5]), history), abs=1e-6)


def test_a_row_nobody_asked_anything_of_gets_the_very_logits():
    logits_BV = torch.randn(2, VOCABULARY, dtype=torch.bfloat16)
    processors = LogitsProcessors(2, VOCABULARY)
    processors.set_slot(0, SamplingParams(), stop_ids=[1])
    assert processors.apply(logits_BV) is logits_BV
    processors.set_slot(1, SamplingParams(repetition_penalty=1.0, no_repeat_ngram_size=1, stop_bias=1.0))
    processors.observe(torch.tensor([2, 2]))
    assert torch.equal(processors.apply(logits_BV)[0], logits_BV[0].float())


def test_a_token_outside_the_vocabulary_is_refused():
    for wrong in ({"stop_ids": [VOCABULARY]}, {"history": [2, -1]}):
        with pytest.raises(DataError, match=f"outside the vocabulary of {VOCABULARY}"):
            one_slot(SamplingParams(), **wrong)


EVERYTHING = SamplingParams(
    temperature=0.8,
    top_p=0.9,
    top_k=4,
    min_p=0.01,
    seed=1,
    repetition_penalty=1.0,
    no_repeat_ngram_size=3,
    no_repeat_window=8,
    stop_bias=1.0,
)


class NothingIsReadBack(TorchDispatchMode):
    """Fails on operations that make the host wait, for a value or for the shape of a result."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "item", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
        name = func._schema.name.removeprefix("aten::")
        assert not name.startswith(self.REFUSED), name
        if name == "_to_copy":
            assert "device" not in (kwargs or {}), "a copy to another device"
        if name in ("index", "index_put", "index_put_"):
            assert all(one is None or one.dtype != torch.bool for one in args[1]), "indexing by a mask"
        return func(*args, **(kwargs or {}))


def busy_sampler() -> Sampler:
    sampler = Sampler(3, 50)
    sampler.set_slot(0, EVERYTHING, stop_ids=[7, 8], history=[1, 2, 3])
    sampler.set_slot(1, SamplingParams())
    return sampler


def test_a_step_reads_nothing_back_to_the_host():
    sampler = busy_sampler()
    active_B = torch.tensor([True, True, False])
    with NothingIsReadBack():
        for _ in range(3):
            tokens_B = sampler.choose(torch.randn(3, 50), active_B)
    assert len(sampler.read(tokens_B)) == 3
    for read in (lambda: tokens_B[0].item(), lambda: tokens_B[active_B], lambda: tokens_B.nonzero()):
        with pytest.raises(AssertionError), NothingIsReadBack():
            read()


def test_a_step_runs_where_there_are_no_numbers_to_read():
    sampler = Sampler(3, 50, device="meta")
    logits_BV = torch.randn(3, 50, device="meta")
    assert sampler.choose(logits_BV).shape == (3,)
    sampler.set_slot(0, EVERYTHING, stop_ids=[7, 8])
    tokens_B = sampler.choose(logits_BV, torch.ones(3, dtype=torch.bool, device="meta"))
    assert (tokens_B.shape, tokens_B.device.type) == ((3,), "meta")
    with pytest.raises((NotImplementedError, RuntimeError)):
        sampler.read(tokens_B)
