"""Intervals and paired tests agree with theory, with brute force, and with their own promises."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.by_name import METRICS
from pipelines.evaluate.metrics.resampling import bootstrap, compare, mcnemar

EXACT, MME, TASKS = METRICS["exact_match"], METRICS["mme"], METRICS["choice_by_category"]


def alone(count):
    return [Truth(answers=("x",))] * count


def in_groups(count, size):
    return [Truth(answers=("x",), group=str(number // size)) for number in range(count)]


def test_the_interval_of_a_mean_has_the_width_of_its_standard_error():
    scores = np.tile([1.0, 0.0, 1.0, 1.0], 100)
    estimate = bootstrap(EXACT, scores, alone(400))
    half = 1.96 * 100 * math.sqrt(0.75 * 0.25 / 400)
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((75 - half, 75, 75 + half), abs=0.6)
    assert estimate.count == 400
    assert bootstrap(EXACT, scores, alone(400)) == estimate


def test_questions_about_one_video_are_resampled_together():
    scores = np.repeat([1.0, 0.0], 200)  # each video's answers are all right or all wrong
    together = bootstrap(EXACT, scores, in_groups(400, 10))
    half = 1.96 * 100 * math.sqrt(0.25 / 40)
    assert (together.low, together.high) == pytest.approx((50 - half, 50 + half), abs=2)
    apart = bootstrap(EXACT, scores, alone(400))
    assert together.high - together.low > 2.5 * (apart.high - apart.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(3), 0
    for trial in range(200):
        scores = (rng.random(150) < 0.7).astype(float)
        estimate = bootstrap(EXACT, scores, alone(150), resamples=200, seed=trial)
        covered += estimate.low <= 70 <= estimate.high
    assert 0.9 <= covered / 200 <= 0.985


def test_every_task_keeps_its_number_of_questions_in_every_draw():
    truths = [
        Truth(answers=("A",), category=name) for name, n in (("count", 1), ("order", 30)) for _ in range(n)
    ]
    scores = np.array([1.0] + [0.0] * 30)
    estimate = bootstrap(TASKS, scores, truths)
    assert (estimate.low, estimate.value, estimate.high) == (50, 50, 50)


def test_mmes_interval_resamples_pictures_within_a_category():
    truths = [Truth(answers=("Yes",), category="OCR", group=str(n // 2)) for n in range(80)]
    scores = np.tile([1.0, 1.0, 1.0, 0.0], 20)  # pictures worth 200 and 50 points in turn
    estimate = bootstrap(MME, scores, truths)
    half = 1.96 * 75 / math.sqrt(40)
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx(
        (125 - half, 125, 125 + half), abs=2
    )


@pytest.mark.parametrize(
    ("better", "worse", "p_value"),
    [(0, 0, 1.0), (5, 0, 2 / 32), (0, 5, 2 / 32), (3, 3, 1.0), (10, 1, 2 * 12 / 2**11), (1, 2, 1.0)],
)
def test_mcnemars_test_counts_a_fair_coins_throws(better, worse, p_value):
    assert mcnemar(better, worse) == pytest.approx(p_value)


def test_right_and_wrong_answers_are_compared_by_mcnemars_test():
    first, second = np.array([1.0] * 12 + [0.0] * 3), np.array([0.0] * 10 + [1.0] * 5)
    result = compare(EXACT, first, second, alone(15))
    assert (result.better, result.worse, result.test) == (10, 3, "McNemar, exact")
    assert result.p_value == mcnemar(10, 3)
    assert result.difference.value == pytest.approx(100 * 7 / 15)
    assert result.difference.low <= result.difference.value <= result.difference.high


def test_the_sign_flips_agree_with_all_of_them():
    rng = np.random.default_rng(5)
    first, second = rng.random(10), rng.random(10)
    gains = first - second
    flipped = [abs(np.dot(signs, gains)) for signs in itertools.product((-1, 1), repeat=10)]
    exact = np.mean(np.array(flipped) >= abs(gains.sum()) - 1e-12)
    result = compare(METRICS["anls"], first, second, alone(10))
    assert result.test == "sign flips"
    assert result.p_value == pytest.approx(exact, abs=0.02)


def test_sign_flips_of_right_and_wrong_answers_are_mcnemars_test():
    first, second = np.array([1.0] * 12 + [0.0] * 4), np.array([0.0] * 11 + [1.0] * 5)
    pairs = in_groups(16, 1)
    weighted = [Truth(answers=("x",), group=t.group, category=str(n % 2)) for n, t in enumerate(pairs)]
    assert compare(TASKS, first, second, weighted).test == "sign flips"
    assert compare(TASKS, first, second, weighted).p_value == pytest.approx(mcnemar(11, 4), abs=0.02)


def test_a_difference_is_seen_where_the_models_differ_on_the_same_questions_only():
    """Paired: 30 of 1000 questions decide, although either score's own interval is wider."""
    first = np.array([1.0] * 530 + [0.0] * 470)
    second = np.array([1.0] * 500 + [0.0] * 500)
    result = compare(EXACT, first, second, alone(1000))
    assert result.difference.low > 0
    assert result.p_value < 1e-6
    apart = bootstrap(EXACT, first, alone(1000))
    assert apart.high - apart.low > 2 * (result.difference.high - result.difference.low)


def test_equal_models_do_not_differ():
    scores = np.array([1.0, 0.0, 0.5])
    result = compare(METRICS["anls"], scores, scores, alone(3))
    assert (result.p_value, result.better, result.worse) == (1.0, 0, 0)
    assert (result.difference.low, result.difference.high) == (0, 0)


def test_under_the_null_small_p_values_are_as_rare_as_they_say():
    rng, small = np.random.default_rng(6), 0
    for trial in range(200):
        first, second = rng.random((2, 40))
        small += compare(METRICS["anls"], first, second, alone(40), resamples=10, seed=trial).p_value < 0.1
    assert 0.04 <= small / 200 <= 0.17
