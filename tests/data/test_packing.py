"""Packing: nothing over budget, nothing lost, the same every time, and close to what is possible."""

from __future__ import annotations

import functools
import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.pack import packing
from pipelines.data.pack.budgets import Budget, lower_bound, sized_bound
from pipelines.data.pack.packing import FIRST, Fitting, Packer
from pipelines.data.pack.plan import shuffled

BUDGET = Budget(text=100, image=200)
FULL_SIZE = Budget(text=2048, image=20_480)

sizes = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 200)), max_size=150)
few = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 200)), min_size=1, max_size=9)


def resize_pool(patch, pool):
    for name, size in (("POOL", pool), ("REACH", 3 * pool // 2), ("ROUND", pool // 4)):
        patch.setattr(packing, name, size)


@pytest.fixture
def small_pool(monkeypatch):
    """A pool that even short streams fill, empty and wait for."""
    resize_pool(monkeypatch, 16)


@pytest.fixture
def middling_pool(monkeypatch):
    """A pool that streams of thousands fill many times."""
    resize_pool(monkeypatch, 256)


def arrays(pairs):
    text_N, image_N = np.array(pairs, np.int64).reshape(-1, 2).T
    return text_N, image_N


def packed(text_N, image_N, budget, cuts=()):
    """All sequences; the stream is fed in pieces that end at ``cuts``."""
    packer, sequences = Packer(budget), []
    for text_C, image_C in zip(np.split(text_N, cuts), np.split(image_N, cuts), strict=True):
        sequences += packer.feed(text_C, image_C)
    return [members.tolist() for members in (*sequences, *packer.finish())]


def lognormal(rng, count, mean_text, mean_image):
    """Sizes like those of pictures with conversations; of one picture in eight there are several."""
    text = np.clip(rng.lognormal(0, 1, count) * mean_text / 1.65, 8, 2048).astype(int)
    image = rng.lognormal(0, 0.8, count) * rng.choice([0, 1, 1, 1, 1, 1, 1, 4], count) * mean_image / 1.7
    return text, np.clip(image, 0, 20_480).astype(int)


@functools.cache
def fewest(pairs):
    """By trying: the fewest sequences that hold all samples; each joins one that is there, or opens one."""

    def place(rest, bins, best):
        if not rest:
            return len(bins)
        (text, image), *later = rest
        for number, (text_bin, image_bin) in enumerate(bins):
            joined = (text_bin + text, image_bin + image)
            if joined[0] <= BUDGET.text and joined[1] <= BUDGET.image:
                best = place(later, (*bins[:number], joined, *bins[number + 1 :]), best)
        if len(bins) + 1 < best:
            best = place(later, (*bins, (text, image)), best)
        return best

    return place(list(pairs), (), len(pairs))


def check_packing(sequences, text_N, image_N, budget):
    assert sorted(itertools.chain(*sequences)) == list(range(len(text_N)))
    for members in sequences:
        assert members == sorted(members)
        assert text_N[members].sum() <= budget.text
        assert image_N[members].sum() <= budget.image


@settings(deadline=None)
@given(pairs=sizes)
def test_no_sequence_exceeds_a_budget_and_every_sample_is_in_exactly_one(pairs):
    text_N, image_N = arrays(pairs)
    check_packing(packed(text_N, image_N, BUDGET), text_N, image_N, BUDGET)


@pytest.mark.usefixtures("small_pool")
@settings(deadline=None)
@given(pairs=sizes)
def test_the_same_holds_of_a_pool_that_the_stream_fills_many_times(pairs):
    text_N, image_N = arrays(pairs)
    sequences = packed(text_N, image_N, BUDGET)
    check_packing(sequences, text_N, image_N, BUDGET)
    for members in sequences:
        assert members[-1] - members[0] < packing.REACH


@pytest.mark.usefixtures("small_pool")
@settings(deadline=None)
@given(pairs=sizes, cuts=st.lists(st.integers(0, 150), max_size=6))
def test_where_the_stream_is_cut_into_pieces_makes_no_difference(pairs, cuts):
    text_N, image_N = arrays(pairs)
    assert packed(text_N, image_N, BUDGET, sorted(cuts)) == packed(text_N, image_N, BUDGET)


@pytest.mark.usefixtures("small_pool")
@settings(deadline=None)
@given(pairs=sizes, more=sizes)
def test_what_has_been_closed_does_not_depend_on_what_comes_later(pairs, more):
    before, packer = [], Packer(BUDGET)
    before = [members.tolist() for members in packer.feed(*arrays(pairs))]
    assert packed(*arrays(pairs + more), BUDGET)[: len(before)] == before


@settings(deadline=None)
@given(pairs=sizes, kind=st.sampled_from([np.int32, np.uint16, np.int64]))
def test_the_type_of_the_counts_makes_no_difference(pairs, kind):
    text_N, image_N = arrays(pairs)
    other = packed(text_N.astype(kind), image_N.astype(kind), BUDGET)
    assert other == packed(text_N, image_N, BUDGET)


@settings(deadline=None, max_examples=200)
@given(pairs=few)
def test_few_samples_take_at_most_one_sequence_more_than_the_fewest_possible(pairs):
    """And seldom that: the next test counts."""
    optimum = fewest(tuple(pairs))
    text_N, image_N = arrays(pairs)
    assert sized_bound(text_N, image_N, BUDGET) <= optimum
    assert optimum <= len(packed(text_N, image_N, BUDGET)) <= optimum + 1


def test_few_samples_take_the_fewest_sequences_nine_times_in_ten():
    rng = np.random.default_rng(0)
    ours = best = exact = 0
    for _ in range(200):
        text_N, image_N = rng.integers(1, 80, 8), rng.integers(0, 160, 8)
        found = len(packed(text_N, image_N, BUDGET))
        optimum = fewest(tuple(zip(text_N.tolist(), image_N.tolist(), strict=True)))
        ours, best, exact = ours + found, best + optimum, exact + (found == optimum)
    assert exact >= 180
    assert ours <= 1.03 * best


@settings(deadline=None)
@given(pairs=sizes)
def test_the_bound_for_whole_samples_is_no_lower_than_the_one_by_sums(pairs):
    text_N, image_N = arrays(pairs)
    plain = lower_bound(int(text_N.sum()), int(image_N.sum()), BUDGET)
    assert plain <= sized_bound(text_N, image_N, BUDGET) <= len(pairs)
    assert plain == max(-(-int(text_N.sum()) // 100), -(-int(image_N.sum()) // 200))


def test_the_bound_counts_one_sequence_per_sample_above_half_a_budget():
    text_N, none_N = np.full(50, 51), np.zeros(50, int)
    assert lower_bound(int(text_N.sum()), 0, BUDGET) == 26
    assert sized_bound(text_N, none_N, BUDGET) == len(packed(text_N, none_N, BUDGET)) == 50
    beside = np.concatenate([np.full(30, 60), np.full(30, 50)])  # no 50 fits beside a 60; two of them do
    assert sized_bound(beside, 0 * beside, BUDGET) == len(packed(beside, 0 * beside, BUDGET)) == 45


@pytest.mark.parametrize(
    ("mean_text", "mean_image", "binding"),
    [(400, 700, "text"), (60, 1500, "images"), (100, 1000, "both")],
    ids=lambda value: str(value),
)
def test_a_stream_is_packed_close_to_the_bound_whichever_budget_binds(mean_text, mean_image, binding):
    rng = np.random.default_rng(7)
    text_N, image_N = lognormal(rng, 20_000, mean_text, mean_image)
    if binding == "both":
        image_N = np.minimum(image_N * (10 * text_N.sum() / image_N.sum()), 20_480).astype(int)
    sequences = packed(text_N, image_N, FULL_SIZE)
    check_packing(sequences, text_N, image_N, FULL_SIZE)
    bound = lower_bound(int(text_N.sum()), int(image_N.sum()), FULL_SIZE)
    # Where both bind, the stream's own fluctuations cost most, and fewer the longer it is.
    assert bound <= len(sequences) <= (1.025 if binding == "both" else 1.005) * bound


def test_samples_around_half_a_budget_find_their_complements():
    rng = np.random.default_rng(5)
    large = rng.random(10_000) < 0.5
    text_N = np.where(large, rng.integers(1025, 1500, 10_000), rng.integers(500, 1024, 10_000))
    sequences = packed(text_N, 0 * text_N, FULL_SIZE)
    check_packing(sequences, text_N, 0 * text_N, FULL_SIZE)
    assert len(sequences) <= 1.015 * sized_bound(text_N, 0 * text_N, FULL_SIZE)


def test_a_stream_sorted_by_kind_is_packed_too_if_less_well():
    rng = np.random.default_rng(3)
    text_N = np.concatenate([rng.integers(200, 900, 6000), rng.integers(10, 40, 6000)])
    image_N = np.concatenate([np.zeros(6000, int), rng.integers(600, 1025, 6000)])
    sequences = packed(text_N, image_N, FULL_SIZE)
    check_packing(sequences, text_N, image_N, FULL_SIZE)
    bound = sized_bound(text_N[:6000], image_N[:6000], FULL_SIZE)
    bound += sized_bound(text_N[6000:], image_N[6000:], FULL_SIZE)  # the halves cannot meet, but for the pool
    assert len(sequences) <= 1.03 * bound


@pytest.mark.usefixtures("middling_pool")
def test_samples_of_any_size_travel_less_than_the_reach_and_none_is_left_behind():
    """Samples above half a budget that fit beside nothing: the worst that a pool can hold."""
    rng = np.random.default_rng(1)
    text_N = np.where(rng.random(6000) < 0.6, rng.integers(1100, 2049, 6000), rng.integers(600, 900, 6000))
    image_N = np.where(text_N > 1024, 20_000, rng.integers(0, 15_000, 6000))
    sequences = packed(text_N, image_N, FULL_SIZE)
    check_packing(sequences, text_N, image_N, FULL_SIZE)
    assert max(members[-1] - members[0] for members in sequences) < packing.REACH


@pytest.mark.usefixtures("middling_pool")
def test_sequences_come_out_while_samples_go_in():
    taken = given_out = 0
    packer = Packer(FULL_SIZE)
    rng = np.random.default_rng(2)
    for _ in range(20):
        text_N, image_N = lognormal(rng, 500, 100, 700)
        taken += 500
        for members in packer.feed(text_N, image_N):
            given_out += len(members)
        assert taken - given_out < packing.POOL
    assert given_out + sum(map(len, packer.finish())) == taken


@pytest.mark.usefixtures("middling_pool")
def test_memory_is_the_same_for_a_stream_four_times_as_long():
    def peak(pieces):
        packer, rng = Packer(FULL_SIZE), np.random.default_rng(0)
        tracemalloc.start()
        for _ in range(pieces):
            for _members in packer.feed(rng.integers(9, 200, 500), rng.integers(0, 1025, 500)):
                pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(3)  # what is allocated once and for all
    assert peak(16) < 1.1 * peak(4)


def test_a_sample_over_budget_is_refused():
    for text, image in ((101, 0), (1, 201), (-1, 0)):
        with pytest.raises(AssertionError):
            list(Packer(BUDGET).feed(np.array([text]), np.array([image])))


def test_a_feed_that_was_not_run_to_its_end_is_noticed():
    packer = Packer(BUDGET)
    next(packer.feed(np.full(packing.POOL, 50), np.zeros(packing.POOL, int)))
    with pytest.raises(AssertionError, match="still running"):
        list(packer.finish())


def test_samples_without_tokens_are_packed():
    none = np.zeros(10, np.int64)
    assert packed(none, none, BUDGET) == [list(range(10))]
    assert packed(none[:0], none[:0], BUDGET) == []


@settings(deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=2, max_size=60),
    share=st.floats(0, 1),
)
def test_a_sequence_begins_with_the_oldest_and_is_closed_full_or_where_nothing_more_fits(pairs, share):
    tight_N, loose_N = arrays(pairs)
    fitting, waiting = Fitting(tight_N, loose_N, 100, 200, share), list(range(len(pairs)))
    assert len(waiting) <= FIRST  # so all that wait are considered
    while fitting.left:
        members = fitting.fill()
        assert members[0] == waiting[0]
        waiting = [slot for slot in waiting if slot not in members]
        assert fitting.left == len(waiting)
        tight, loose = 100 - tight_N[members].sum(), 200 - loose_N[members].sum()
        assert tight == 0 or not any(tight_N[slot] <= tight and loose_N[slot] <= loose for slot in waiting)


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(0, 10))
def test_the_shuffle_is_a_permutation_that_the_seed_decides(count, seed):
    order = shuffled(count, seed)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    np.testing.assert_array_equal(order, shuffled(count, seed))


def test_the_shuffle_mixes_far_but_reads_near():
    order = shuffled(20_000, 0)
    assert not np.array_equal(order, shuffled(20_000, 1))
    assert np.abs(order - np.arange(20_000)).mean() > 5_000  # a random permutation has 6,667
    for start in range(0, 20_000, 256):
        places = len(set((order[start : start + 256] // 8).tolist()))
        assert places <= 33
