"""Drawing tokens: reproducible uniform numbers, exact distributions, settings that are refused by name."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from casa_core.engine.requests import SamplingParams
from casa_core.engine.sampling import SamplingTensors, random_key, sample, uniform
from casa_core.errors import ConfigError
from tests.support.core.sampling import PARAMS

INF = float("inf")
NAN = float("nan")


def chance_of(chi_square: float, freedom: int) -> float:
    """Probability of a chi-square at least this large."""
    half = torch.tensor([freedom / 2, chi_square / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def chance_of_counts(counts: torch.Tensor, probability: torch.Tensor) -> float:
    """Pearson's test; tokens that cannot be drawn must not have been."""
    possible = probability > 0
    assert int(counts[~possible].sum()) == 0
    expected = probability[possible] * counts.sum()
    return chance_of(float(((counts[possible] - expected) ** 2 / expected).sum()), int(possible.sum()) - 1)


def draws(seeds: range, steps: range) -> torch.Tensor:
    """(seeds, steps)"""
    keys_B = torch.tensor([random_key(seed) for seed in seeds])
    return torch.stack([uniform(keys_B, torch.full_like(keys_B, step)) for step in steps], dim=1)


def splitmix(state: int, count: int) -> list[int]:
    """SplitMix64 in plain integers."""
    mask, out = (1 << 64) - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        bits = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
        out.append(bits ^ (bits >> 31))
    return out


def test_random_numbers_are_those_of_splitmix64():
    # The generator's published first outputs for seed 0 guard the reference itself.
    assert splitmix(0, 3) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    for seed in (0, 1, -5, 2**64 - 1, 2**63):
        key = random_key(seed)
        expected = [((bits >> 12) + 0.5) / 2**52 for bits in splitmix(key & (2**64 - 1), 20)]
        assert [float(uniform(torch.tensor([key]), torch.tensor([step]))) for step in range(20)] == expected
    assert random_key(-1) == random_key(2**64 - 1)
    assert len({random_key(None) for _ in range(9)}) == 9


@pytest.mark.parametrize(("seeds", "steps"), [(range(1), range(20000)), (range(20000), range(1))])
def test_random_numbers_are_uniform_over_steps_and_over_seeds(seeds: range, steps: range):
    ordered = draws(seeds, steps).flatten().sort().values
    count = len(ordered)
    place = torch.arange(count, dtype=torch.float64) / count
    distance = float(torch.maximum(ordered - place, place + 1 / count - ordered).max())
    # Kolmogorov's distribution: 1.95 is passed once in a thousand.
    assert distance * math.sqrt(count) < 1.95


def test_random_numbers_of_neighbouring_rows_and_steps_know_nothing_of_one_another():
    number_SN = draws(range(150), range(150))
    for first, second in (
        (number_SN[:, :-1], number_SN[:, 1:]),
        (number_SN[:-1], number_SN[1:]),
        (number_SN[:-1, 1:], number_SN[1:, :-1]),
    ):
        cells = (first * 10).long() * 10 + (second * 10).long()
        counts = torch.bincount(cells.flatten(), minlength=100)
        assert chance_of_counts(counts, torch.full((100,), 0.01, dtype=torch.float64)) > 1e-3


def rules(count: int, **given: float) -> SamplingTensors:
    every = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0} | given
    return SamplingTensors(
        torch.full((count,), every["temperature"]),
        torch.full((count,), every["top_p"], dtype=torch.float64),
        torch.full((count,), int(every["top_k"])),
        torch.full((count,), every["min_p"]),
    )


PROBABILITY = torch.tensor([0.4, 0.3, 0.0, 0.15, 0.1, 0.05], dtype=torch.float64)
KEPT = {
    "everything": ({}, [1, 1, 0, 1, 1, 1]),
    "top_k": ({"top_k": 3}, [1, 1, 0, 1, 0, 0]),
    "top_p": ({"top_p": 0.75}, [1, 1, 0, 1, 0, 0]),
    "min_p": ({"min_p": 0.2}, [1, 1, 0, 1, 1, 0]),
    "top_p of what top_k left": ({"top_k": 3, "top_p": 0.8}, [1, 1, 0, 0, 0, 0]),
    "top_p 0": ({"top_p": 0.0}, [1, 0, 0, 0, 0, 0]),
    "top_k 1": ({"top_k": 1}, [1, 0, 0, 0, 0, 0]),
    "min_p 1": ({"min_p": 1.0}, [1, 0, 0, 0, 0, 0]),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_draws_follow_the_distribution_that_is_left(name: str, temperature: float):
    given, kept = KEPT[name]
    count = 20000
    logits_BV = (PROBABILITY.log() * temperature).float().expand(count, -1)
    keys_B = torch.full((count,), random_key(3))
    tokens_B = sample(
        logits_BV, rules(count, temperature=temperature, **given), uniform(keys_B, torch.arange(count))
    )
    left = PROBABILITY * torch.tensor(kept)
    counts = torch.bincount(tokens_B, minlength=len(left))
    if sum(kept) == 1:
        assert counts.tolist() == [count * one for one in kept]
    else:
        assert chance_of_counts(counts, left / left.sum()) > 1e-3


def test_the_ends_of_rules_are_exact():
    def drawn(logits: list[float], number: float, **given: float) -> int:
        return int(sample(torch.tensor([logits]), rules(1, **given), torch.tensor([number]).double()))

    assert drawn([0.0, 0.0], 0.5) == 1, "the first of two halves ends before 0.5"
    assert drawn([-INF, 0.0], 0.0) == 1, "a ruled-out token has no part of the numbers"
    halves = [drawn([0.0] * 4, number, top_p=0.5) for number in (0.0, 0.49, 0.5, 0.99)]
    assert halves == [0, 0, 1, 1], (
        "of equal tokens the first ones make up the nucleus, and no more than needed"
    )
    rare = [-40.0, 0.0]  # the two weights' sum, rounded, is that of the second alone
    assert drawn(rare, 1e-18, top_p=1.0) == 0, "top_p 1 keeps every token"
    assert drawn(rare, 1e-18, top_p=0.99) == 1


def plain_draw(logits: list[float], params: SamplingParams, number: float) -> int:
    """The reference: one slot, with lists and loops. Assumes that no rounding decides."""
    best = max(logits)
    if params.temperature == 0:
        return logits.index(best)
    weight = [math.exp((logit - best) / params.temperature) for logit in logits]
    order = sorted(range(len(weight)), key=lambda token: -weight[token])  # stable: lower ids first
    order = order[: params.top_k or None]
    total, before, kept = sum(weight[token] for token in order), 0.0, set()
    for token in order:
        assume(params.top_p in (0, 1) or abs(before / total - params.top_p) > 1e-5)
        if not kept or before / total < params.top_p or params.top_p == 1:
            kept.add(token)
        before += weight[token]
    assume(all(abs(weight[token] - params.min_p) > 1e-5 or weight[token] in (0, 1) for token in kept))
    kept = {token for token in kept if weight[token] >= params.min_p}
    ends = list(accumulate(weight[token] if token in kept else 0.0 for token in range(len(weight))))
    assume(all(abs(end / ends[-1] - number) > 1e-5 for end in ends[:-1]))
    return next(token for token, end in enumerate(ends) if end > number * ends[-1])


# Whole numbers, so that tokens tie; some tokens are ruled out.
LOGITS = st.lists(st.integers(-3, 3).map(float) | st.just(-INF), min_size=7, max_size=7).filter(
    lambda row: max(row) > -INF
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(LOGITS, PARAMS, st.floats(0.001, 0.999)), min_size=1, max_size=5))
def test_each_row_of_a_batch_draws_what_plain_loops_draw(batch: list[tuple[Any, SamplingParams, float]]):
    own = SamplingTensors(
        torch.tensor([params.temperature for _, params, _ in batch]),
        torch.tensor([params.top_p for _, params, _ in batch], dtype=torch.float64),
        torch.tensor([params.top_k for _, params, _ in batch]),
        torch.tensor([params.min_p for _, params, _ in batch]),
    )
    numbers = torch.tensor([number for *_, number in batch], dtype=torch.float64)
    tokens = sample(torch.tensor([logits for logits, *_ in batch]), own, numbers).tolist()
    assert tokens == [plain_draw(*row) for row in batch]


def test_half_precision_logits_draw_like_the_same_numbers_in_single():
    half_BV = (3 * torch.randn(1, 40, generator=torch.Generator().manual_seed(0))).bfloat16().expand(5000, -1)
    number_B = torch.arange(5000).double() / 5000
    own = rules(5000, temperature=1.5, top_p=0.9)
    assert torch.equal(sample(half_BV, own, number_B), sample(half_BV.float(), own, number_B))


def test_a_temperature_near_zero_is_greedy_without_overflow():
    logits_BV = torch.tensor([[1e30, -1e30, 1e30, 0.0]]).expand(3, -1)
    own = SamplingTensors(
        torch.tensor([1e-30, 1e-45, 0.0]),
        torch.full((3,), 0.5).double(),
        torch.zeros(3).long(),
        torch.zeros(3),
    )
    assert sample(logits_BV, own, torch.full((3,), 0.4).double()).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", NAN),
        ("temperature", INF),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("top_k", -1),
        ("min_p", 1.5),
        ("seed", 2**64),
        ("repetition_penalty", -1.0),
        ("repetition_decay", 1.01),
        ("no_repeat_ngram_size", -1),
        ("no_repeat_window", 0),
        ("stop_bias", INF),
        ("stop_bias", NAN),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_and_value(field: str, value: float):
    with pytest.raises(ConfigError, match=f"`{field}` is {value}") as caught:
        SamplingParams(**{field: value})
    assert caught.value.why
    assert field in caught.value.remedy


def test_an_ngram_longer_than_its_window_is_refused():
    with pytest.raises(ConfigError, match="`no_repeat_window` is 3 tokens, but `no_repeat_ngram_size` is 4"):
        SamplingParams(no_repeat_ngram_size=4, no_repeat_window=3)
