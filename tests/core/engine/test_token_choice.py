"""Slots of one sampler: independent of one another, moved by their state, and continued exactly."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.engine.requests import SamplingParams
from casa_core.engine.sampling import LogitsError, Sampler
from casa_core.errors import DataError
from tests.support.core.sampling import PARAMS

INF = float("inf")
NAN = float("nan")


def test_a_row_goes_on_undisturbed_when_one_with_a_longer_memory_and_more_stop_tokens_sits_down():
    params = SamplingParams(repetition_penalty=0.5, no_repeat_ngram_size=2, no_repeat_window=6)
    sampler = Sampler(2, 7)
    sampler.set_slot(0, params, stop_ids=[6])
    generated = []
    for step, logits_V in enumerate(stream(16)):
        if step == 5:
            newcomer = SamplingParams(no_repeat_ngram_size=4, no_repeat_window=50, stop_bias=1.0)
            sampler.set_slot(1, newcomer, stop_ids=[1, 2, 3], history=[4, 5] * 9)
        generated.append(sampler.read(sampler.choose(logits_V.expand(2, -1)))[0])
    assert generated == alone(params, stream(16)) != stream(16).argmax(-1).tolist()


def stream(length: int, seed: int = 0) -> torch.Tensor:
    """(length, 7) logits of one slot, step by step."""
    return torch.randn(length, 7, generator=torch.Generator().manual_seed(seed))


def alone(params: SamplingParams, logits_SV: torch.Tensor) -> list[int]:
    sampler = Sampler(1, 7)
    sampler.set_slot(0, params, stop_ids=[6])
    return [sampler.read(sampler.choose(logits_V[None]))[0] for logits_V in logits_SV]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_row_gets_the_same_tokens_wherever_it_sits_and_whoever_sits_beside_it(data: st.DataObject):
    batch = data.draw(st.lists(PARAMS, min_size=2, max_size=5))
    logits = [stream(12, seed) for seed in range(len(batch))]
    sampler = Sampler(len(batch), 7)
    for slot, params in enumerate(batch):
        sampler.set_slot(slot, params, stop_ids=[6])
    done = [0] * len(batch)
    generated: list[list[int]] = [[] for _ in batch]
    for _ in range(10):
        active = data.draw(st.lists(st.booleans(), min_size=len(batch), max_size=len(batch)))
        logits_BV = torch.stack([own[step] for own, step in zip(logits, done, strict=True)])
        tokens = sampler.read(sampler.choose(logits_BV, torch.tensor(active)))
        for slot, on in enumerate(active):
            if on:
                generated[slot].append(tokens[slot])
                done[slot] += 1
            else:
                assert tokens[slot] == 0
    for params, own, tokens in zip(batch, logits, generated, strict=True):
        assert tokens == alone(params, own[: len(tokens)])


@settings(max_examples=60, deadline=None)
@given(params=PARAMS, neighbour=PARAMS, cut=st.integers(0, 10))
def test_a_row_saved_and_loaded_elsewhere_goes_on_exactly(
    params: SamplingParams, neighbour: SamplingParams, cut: int
):
    logits_SV = stream(12, seed=5)
    expected = alone(params, logits_SV)
    first = Sampler(1, 7)
    first.set_slot(0, params, stop_ids=[6])
    for logits_V in logits_SV[:cut]:
        first.choose(logits_V[None])
    file = io.BytesIO()
    torch.save(first.slot_state(0), file)
    file.seek(0)
    second = Sampler(3, 7)
    for slot in range(3):
        second.set_slot(slot, neighbour, stop_ids=[1, 2], history=[3, 4, 3])
    second.choose(torch.zeros(3, 7))
    second.load_slot(1, torch.load(file))
    rest = [second.read(second.choose(logits_V.expand(3, -1)))[1] for logits_V in logits_SV[cut:]]
    assert rest == expected[cut:]


def test_a_whole_state_goes_on_exactly_and_is_no_view_of_what_goes_on():
    def fresh() -> Sampler:
        sampler = Sampler(3, 7)
        sampler.set_slot(0, SamplingParams(temperature=1.0, seed=1, repetition_penalty=0.5), stop_ids=[6])
        sampler.set_slot(2, SamplingParams(no_repeat_ngram_size=2))
        return sampler

    sampler = fresh()
    for logits_V in stream(5):
        sampler.choose(logits_V.expand(3, -1))
    state = sampler.state_dict()
    first, second = (
        [sampler.read(sampler.choose(logits_V.expand(3, -1))) for logits_V in stream(9, seed=1)]
        for sampler in (sampler, Sampler(3, 7))
        if sampler.load_state_dict(state) is None
    )
    assert first == second
    with pytest.raises(DataError, match=r"slots \[0, 1, 2\] was given to a sampler of 2 slots"):
        Sampler(2, 7).load_state_dict(state)


def test_a_state_that_does_not_fit_is_refused_by_name():
    sampler = Sampler(1, 7)
    sampler.set_slot(0, SamplingParams(repetition_penalty=1.0))
    state = sampler.slot_state(0)
    with pytest.raises(DataError, match="vocabulary of 7 tokens, not of 8"):
        Sampler(1, 8).load_slot(0, state)
    with pytest.raises(DataError, match="'said_average' of a slot's state is missing"):
        Sampler(1, 7).load_slot(0, {name: one for name, one in state.items() if name != "said_average"})
    with pytest.raises(DataError, match="'random_key' of a slot's state is missing"):
        Sampler(1, 7).load_slot(0, {name: one for name, one in state.items() if name != "random_key"})
    with pytest.raises(DataError, match="'step' of a slot's state is"):
        Sampler(1, 7).load_slot(0, state | {"step": torch.tensor(1.0)})


def test_a_slot_set_again_has_no_history_and_a_reset_one_repeats_itself():
    params = SamplingParams(temperature=1.0, seed=7, repetition_penalty=1.0, no_repeat_ngram_size=2)
    expected = alone(params, stream(10))
    sampler = Sampler(1, 7)
    sampler.set_slot(
        0, SamplingParams(temperature=2.0, no_repeat_ngram_size=1, no_repeat_window=3, stop_bias=2.0)
    )
    for logits_V in stream(3, seed=9):
        sampler.choose(logits_V[None])
    sampler.set_slot(0, params, stop_ids=[6])
    for _ in range(2):
        assert [sampler.read(sampler.choose(logits_V[None]))[0] for logits_V in stream(10)] == expected
        sampler.reset_slot(0)
    sampler.set_slot(0, SamplingParams())
    assert alone(SamplingParams(), stream(10)) == stream(10).argmax(-1).tolist()


def test_rows_added_in_the_middle_leave_the_others_as_they_were():
    params = SamplingParams(temperature=1.0, seed=7, repetition_penalty=1.0, no_repeat_ngram_size=2)
    sampler = Sampler(1, 7)
    sampler.set_slot(0, params, stop_ids=[6])
    generated = [sampler.read(sampler.choose(logits_V[None]))[0] for logits_V in stream(10)[:4]]
    sampler.add_slots(2)
    sampler.set_slot(2, params, stop_ids=[6])
    both = [sampler.read(sampler.choose(logits_V.expand(3, -1))) for logits_V in stream(10)[4:]]
    assert generated + [row[0] for row in both] == alone(params, stream(10))
    assert [row[1] for row in both] == stream(10)[4:].argmax(-1).tolist()
    assert [row[2] for row in both] == alone(params, stream(10)[4:])


def test_requests_without_a_seed_draw_differently():
    logits_SV = torch.zeros(40, 7)
    assert alone(SamplingParams(temperature=1.0), logits_SV) != alone(
        SamplingParams(temperature=1.0), logits_SV
    )


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ([0.0, NAN, 1.0], "NaN"),
        ([NAN] * 3, "NaN"),
        ([INF, 0.0, 1.0], "NaN or \\+inf"),
        ([-INF] * 3, "every token is forbidden"),
    ],
)
def test_logits_with_nothing_to_choose_are_an_error_of_their_row_where_tokens_are_read(
    broken: list[float], fault: str, temperature: float
):
    sampler = Sampler(3, 3)
    for slot in range(3):
        sampler.set_slot(
            slot, SamplingParams(temperature=temperature, top_p=0.9, seed=slot, repetition_penalty=1.0)
        )
    fine = [0.0, 0.0, 50.0]
    tokens_B = sampler.choose(torch.tensor([fine, broken, fine]))
    assert all(0 <= token < 3 for token in tokens_B.tolist()), "the next step can run before anyone reads"
    later_B = sampler.choose(torch.tensor([fine, fine, fine]))
    for read in (lambda: sampler.read(tokens_B), lambda: sampler.read(later_B)):
        with pytest.raises(LogitsError, match=f"slot 1: .*{fault}") as caught:
            read()
        assert list(caught.value.slots) == [1]
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    sampler.reset_slot(1)
    assert sampler.read_steps(torch.stack([tokens_B, later_B], dim=1))[::2] == [[2, 2], [2, 2]]


def test_nobody_minds_the_logits_of_a_row_that_is_not_active():
    sampler = Sampler(2, 3)
    tokens_B = sampler.choose(torch.tensor([[0.0, 1.0, 0.0], [NAN] * 3]), torch.tensor([True, False]))
    assert sampler.read(tokens_B) == [1, 0]


def test_a_nan_is_found_even_where_it_stands_on_a_forbidden_token():
    sampler = Sampler(1, 3)
    sampler.set_slot(0, SamplingParams(no_repeat_ngram_size=1))
    sampler.choose(torch.tensor([[0.0, 1.0, 0.0]]))
    with pytest.raises(LogitsError, match="NaN"):
        sampler.read(sampler.choose(torch.tensor([[0.0, NAN, 0.0]])))


def test_processors_that_forbid_every_token_say_so():
    sampler = Sampler(1, 3)
    sampler.set_slot(0, SamplingParams(no_repeat_ngram_size=1))
    for _ in range(3):
        sampler.read(sampler.choose(torch.zeros(1, 3)))
    with pytest.raises(LogitsError, match="every token is forbidden"):
        sampler.read(sampler.choose(torch.zeros(1, 3)))


def test_rows_may_be_set_and_run_inside_inference_mode_and_outside():
    params = SamplingParams(temperature=1.0, seed=7, repetition_penalty=1.0, no_repeat_ngram_size=2)
    with torch.inference_mode():
        sampler = Sampler(1, 7)
        sampler.set_slot(0, params, stop_ids=[6])
        logits_SV = stream(10)
        generated = [sampler.read(sampler.choose(logits_V[None]))[0] for logits_V in logits_SV[:5]]
        state = sampler.slot_state(0)
    sampler.load_slot(0, state)
    generated += [sampler.read(sampler.choose(logits_V[None]))[0] for logits_V in logits_SV[5:]]
    assert generated == alone(params, logits_SV)


def test_the_layout_changes_only_with_what_rows_ask_for():
    sampler = Sampler(2, 7)
    sampler.set_slot(0, SamplingParams(temperature=1.0, repetition_penalty=1.0))
    before = sampler.layout
    sampler.set_slot(0, SamplingParams(temperature=0.5, seed=3, repetition_penalty=2.0))
    sampler.choose(torch.zeros(2, 7))
    assert sampler.layout == before
    for other in ({"top_p": 0.5}, {"no_repeat_ngram_size": 2}, {"repetition_penalty": 0.0}):
        sampler.set_slot(0, SamplingParams(**{"temperature": 1.0, "repetition_penalty": 1.0, **other}))
        assert sampler.layout != before
