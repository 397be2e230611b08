"""The metrics agree with slow, obvious references and behave at the edges."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluate.metrics.answers import accuracy_by_type, chance_by_type, exact_match, normalise
from pipelines.evaluate.metrics.captions import EventCounts, event_score, paired_events, word_events
from pipelines.evaluate.metrics.characters import words
from pipelines.evaluate.metrics.intervals import equal_weight_mean, wilson

events = st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab")), max_size=5)


def largest_pairing(spoken, true, tolerance):
    """Every pairing there is, by brute force."""
    for size in range(min(len(spoken), len(true)), 0, -1):
        for chosen in combinations(spoken, size):
            for partners in permutations(true, size):
                if all(
                    s[1] == t[1] and abs(s[0] - t[0]) <= tolerance
                    for s, t in zip(chosen, partners, strict=True)
                ):
                    return size
    return 0


@settings(max_examples=300, deadline=None)
@given(events, events, st.integers(0, 3))
def test_word_events_are_paired_as_well_as_any_pairing_could(spoken, true, tolerance):
    assert len(paired_events(spoken, true, tolerance)) == largest_pairing(spoken, true, tolerance)


@settings(max_examples=100, deadline=None)
@given(events, events, st.integers(0, 3))
def test_pairs_are_close_alike_and_use_no_event_twice(spoken, true, tolerance):
    pairs = paired_events(spoken, true, tolerance)
    assert all(s[1] == t[1] and abs(s[0] - t[0]) <= tolerance for s, t in pairs)
    assert not Counter(s for s, _ in pairs) - Counter(spoken)
    assert not Counter(t for _, t in pairs) - Counter(true)


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("Yes", "yes", True),
        (" circle. ", "circle", True),
        ("circle .", "circle", True),
        ("no", "yes", False),
        ("", "yes", False),
        ("light blue", "blue", False),
        ("Yes!", "yes", True),
        ("yes, it is", "yes", True),
        ("No. It is red.", "no", True),
        ("yes, it is", "no", False),
        ("no parking", "no", False),
        ("No. 5", "no", False),
        ("“Yes”", "yes", True),
        ("it\u2019s", "it's", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("cafe", "café", False),
        ("-5", "5", False),
        ("50%", "50", False),
        ("6'", "6", False),
        ("'yes'.", "yes", True),
    ],
)
def test_answers_match_up_to_case_space_punctuation_and_the_form_of_characters(answer, truth, same):
    assert exact_match(answer, truth) is same


@given(st.text())
def test_a_full_stop_and_outer_space_never_change_what_an_answer_says(text):
    said = re.sub(r"[\s.]+$", "", text)
    assert normalise(f"  {said.upper().lower()}. ") == normalise(said.upper().lower())


def test_wilson_agrees_with_published_values():
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29, to four decimals.
    for correct, count, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        estimate = wilson(correct, count)
        assert (round(estimate.low, 4), round(estimate.high, 4)) == (low, high)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_the_score_equation_it_is_defined_by(pair):
    correct, count = pair
    estimate = wilson(correct, count)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    for end in (estimate.low, estimate.high):
        if 0 < end < 1:
            standard_error = math.sqrt(end * (1 - end) / count)
            assert abs(estimate.value - end) / standard_error == pytest.approx(1.959964, abs=1e-5)


@pytest.mark.parametrize(("correct", "count"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(correct, count):
    with pytest.raises(ValueError, match="correct <= count"):
        wilson(correct, count)


def test_question_types_count_equally_however_many_questions_they_have():
    outcomes = (
        [("yes/no", True)] * 90 + [("yes/no", False)] * 10 + [("colour", True)] * 1 + [("colour", False)] * 1
    )
    groups = accuracy_by_type(outcomes)
    assert {name: e.value for name, e in groups.items()} == {"colour": 0.5, "yes/no": 0.9}
    mean = equal_weight_mean(groups)
    assert mean.value == pytest.approx(0.7)
    assert mean.count == 102


def test_the_mean_of_one_type_has_that_types_interval():
    only = wilson(7, 9)
    mean = equal_weight_mean({"shape": only})
    assert (mean.low, mean.high) == pytest.approx((only.low, only.high))


def test_the_interval_of_the_mean_covers_the_truth_about_as_often_as_it_says():
    rng, rates, counts = np.random.default_rng(5), (0.97, 0.9, 0.6), (60, 80, 200)
    truth, covered, trials = sum(rates) / 3, 0, 2000
    for _ in range(trials):
        draws = [wilson(int(rng.binomial(n, p)), n) for n, p in zip(counts, rates, strict=True)]
        mean = equal_weight_mean({str(i): e for i, e in enumerate(draws)})
        covered += mean.low <= truth <= mean.high
    assert 0.93 <= covered / trials <= 0.98


def test_a_perfect_score_still_has_a_lower_bound_below_one():
    mean = equal_weight_mean({"a": wilson(20, 20), "b": wilson(30, 30)})
    assert mean.value == mean.high == 1.0
    assert 0.85 < mean.low < 1.0


def test_a_mean_over_no_types_is_refused():
    with pytest.raises(ValueError, match="at least one type"):
        equal_weight_mean({})


def test_chance_is_the_share_of_the_most_frequent_truth_of_each_type():
    truths = [("yes/no", "Yes"), ("yes/no", "yes."), ("yes/no", "no"), ("colour", "red"), ("colour", "blue")]
    assert chance_by_type(truths) == {"colour": 0.5, "yes/no": pytest.approx(2 / 3)}


def test_words_become_events_at_the_frame_they_are_said():
    assert word_events(["A red", "", "ball. ball", "."]) == [(0, "a"), (0, "red"), (2, "ball"), (2, "ball")]


@pytest.mark.parametrize(
    ("text", "same_words"),
    [
        ("a red, round ball!", "a red round ball"),
        ("(a red ball) … \u2013 \u2018it\u2019s\u2019 here", "a red ball it's here"),
        ("caf\u00e9; “quoted”", "cafe\u0301 quoted"),
        ("Red,round", "red round"),
        ("- ! …", ""),
    ],
)
def test_punctuation_costs_no_word(text, same_words):
    assert word_events([text]) == word_events([same_words]) == [(0, word) for word in words(same_words)]
    assert event_score([EventCounts.of_clip([text], [same_words], 0)]).f1.value == 1.0


def test_marks_inside_a_word_or_a_number_belong_to_it():
    text = "Don't add 1,000 or 3.5 at 12:30 to a well-known film (हिन्दी), 5% of $20."
    expected = "don't add 1,000 or 3.5 at 12:30 to a well-known film हिन्दी 5 of 20"
    assert words(text) == expected.split()


@given(st.lists(st.text("abcé", min_size=1), max_size=6), st.text(".,!?;:…“”()", min_size=1, max_size=3))
def test_whatever_stands_between_words_they_are_the_same(said, mark):
    assert words(f"{mark} ".join(said)) == words(f" {mark}".join(said)) == words(" ".join(said))


def test_saying_everything_one_frame_late_is_forgiven_and_two_frames_late_is_not():
    truth = ["a red circle", "", "", "left", "", ""]
    late_by = [[""] * n + truth[: len(truth) - n] for n in range(3)]
    f1 = [event_score([EventCounts.of_clip(said, truth, 1)]).f1.value for said in late_by]
    assert f1 == [1.0, 1.0, 0.0]


def test_silence_scores_zero_where_there_is_something_to_say_and_one_where_there_is_not():
    assert event_score([EventCounts.of_clip(["", ""], ["red", ""], 1)]).f1.value == 0.0
    assert event_score([EventCounts.of_clip(["", ""], ["", ""], 1)]).f1.value == 1.0


def test_babbling_costs_precision_and_missing_words_cost_recall():
    score = event_score([EventCounts.of_clip(["a b c d"], ["a b"], 0), EventCounts.of_clip([""], ["x x"], 0)])
    assert (score.matched, score.spoken, score.true) == (2, 4, 4)
    assert (score.precision, score.recall, score.f1.value) == (0.5, 0.5, 0.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(events, events), min_size=1, max_size=6))
def test_f1_is_the_harmonic_mean_of_precision_and_recall_and_lies_in_its_interval(clips):
    counts = [EventCounts(len(paired_events(s, t, 1)), len(s), len(t)) for s, t in clips]
    score = event_score(counts, resamples=50)
    if score.precision + score.recall > 0:
        harmonic = 2 * score.precision * score.recall / (score.precision + score.recall)
        assert score.f1.value == pytest.approx(harmonic)
    assert 0 <= score.f1.low <= score.f1.value <= score.f1.high <= 1


def test_the_bootstrap_interval_of_f1_covers_the_spread_between_clips():
    clips = [EventCounts(9, 10, 10)] * 20 + [EventCounts(5, 10, 10)] * 20
    score = event_score(clips)
    spread = 1.96 * 0.2 / math.sqrt(40)  # the standard error of a mean of 40 draws from {0.9, 0.5}
    assert (score.f1.low, score.f1.value, score.f1.high) == pytest.approx(
        (0.7 - spread, 0.7, 0.7 + spread), abs=0.01
    )
    assert event_score(clips) == score


def test_a_score_over_no_clips_is_refused():
    with pytest.raises(ValueError, match="at least one clip"):
        event_score([])
