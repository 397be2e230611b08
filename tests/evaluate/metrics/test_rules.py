"""What each metric promises: the truth scores the maximum, a constant its share, random letters chance."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest

from casa_core.errors import ConfigError, DataError
from pipelines.evaluate.metrics.anls import levenshtein
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.by_name import METRICS, metric_named
from pipelines.evaluate.metrics.intervals import wilson
from pipelines.evaluate.metrics.mme import COGNITION, PERCEPTION
from pipelines.evaluate.metrics.ocrbench import FORMULAS

RED = ("relaxed_accuracy", "anls", "anls_star", "vqa_accuracy", "ocrbench", "exact_match", "gqa_match")


def score(name, answer, *answers, **more):
    return METRICS[name].score(answer, Truth(answers=answers, **more))


@pytest.mark.parametrize(
    ("name", "answer", "truth", "right"),
    [
        ("relaxed_accuracy", "1,000", "1000", False), ("relaxed_accuracy", "1000.0", "1000", True),
        ("relaxed_accuracy", "2%", "2", False), ("relaxed_accuracy", "2%", "0.02", True),
        ("relaxed_accuracy", "$5", "5", False), ("relaxed_accuracy", "three", "3", False),
        ("relaxed_accuracy", "105", "100", True), ("relaxed_accuracy", "106", "100", False),
        ("relaxed_accuracy", "0.01", "0", False), ("relaxed_accuracy", "-5", "5", False),
        ("vqa_accuracy", "1,000", "1000", True), ("vqa_accuracy", "2%", "2", False),
        ("vqa_accuracy", "$5", "5", False), ("vqa_accuracy", "three", "3", True),
        ("ocrbench", "1,000", "1000", False), ("ocrbench", "It is $5", "5", True),
        ("gqa_match", "1,000", "1000", True), ("gqa_match", "2%", "2", True),
        ("gqa_match", "$5", "5", True), ("gqa_match", "three", "3", False),
        ("realworldqa_match", "three", "3", False), ("realworldqa_match", "Two.", "two", True),
        ("realworldqa_match", "(B)", "B", True), ("realworldqa_match", "B. the left one", "B", True),
        ("exact_match", "1,000", "1000", False), ("exact_match", "three", "3", False),
    ],
)  # fmt: skip
def test_numbers_and_signs_follow_each_benchmarks_own_rule(name, answer, truth, right):
    assert score(name, answer, *[truth] * 10) == float(right)


@pytest.mark.parametrize("name", RED)
def test_quotation_marks_and_accents_are_the_same_in_either_form(name):
    composed, decomposed = "\u201ccaf\u00e9\u2019s\u201d", '"cafe\u0301\'s"'
    assert score(name, composed, *[decomposed] * 10) == score(name, decomposed, *[composed] * 10) == 1.0


@pytest.mark.parametrize("name", RED)
@pytest.mark.parametrize(
    "truth", ["red", "U.S.", "St. Louis", "a b", "$1,000.50", "50%", "x", "数学", "Yes", "..."]
)
def test_an_oracle_is_right_whatever_the_truth_looks_like(name, truth):
    assert score(name, truth, *[truth] * 10) == 1.0
    assert score(name, f" {truth}\n", *[truth] * 10) == 1.0


@pytest.mark.parametrize("name", [*RED, "choice", "realworldqa_match", "mme", "ai2d_official"])
def test_an_empty_answer_is_wrong(name):
    truth = Truth(answers=("Yes",) if name in ("mme", *RED) else ("A",), options=("red", "blue"))
    assert METRICS[name].score("", truth) == METRICS[name].score("  ", truth) == 0.0


def test_one_wrong_letter_of_five_costs_a_fifth_and_three_cost_all():
    assert score("anls", "hallo", "hello", "world") == pytest.approx(0.8)
    assert score("anls", "haxxo", "hello") == 0.0
    assert score("anls", "ab", "ax") == 0.5


def test_the_distance_is_the_one_of_the_recursive_definition():
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    rng = random.Random(0)
    for _ in range(200):
        one, two = ("".join(rng.choices("abc", k=rng.randint(0, 6))) for _ in range(2))
        assert levenshtein(one, two) == slow(one, two)


def test_formulas_keep_their_case_and_lose_their_blanks():
    assert score("ocrbench", "It is X ^ { 2 }", "X^{2}", category=FORMULAS) == 1.0
    assert score("ocrbench", "x^{2}", "X^{2}", category=FORMULAS) == 0.0
    assert score("ocrbench", "x^{2}", "X^{2}", category="Doc-oriented VQA") == 1.0


def mme_truths(pictures=3):
    return [
        Truth(answers=(right,), category=category, group=f"{picture}.png")
        for category in (*PERCEPTION, *COGNITION)
        for picture in range(pictures)
        for right in ("Yes", "No")
    ]


def test_mme_gives_an_oracle_2800_and_a_constant_700():
    mme, truths = METRICS["mme"], mme_truths()
    oracle = mme.scores([truth.answers[0] for truth in truths], truths)
    assert mme.total(oracle, truths) == 2800
    assert mme.parts(oracle, truths) | {"OCR": 200} == mme.parts(oracle, truths)
    assert [mme.parts(oracle, truths)[part] for part in ("Perception", "Cognition")] == [2000, 800]
    constant = mme.scores(["yes"] * len(truths), truths)
    assert mme.total(constant, truths) == 700  # half of the answers, of no picture both


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: [*t, t[0]], lambda t: [*t[:-1], t[0]]])
def test_mme_without_its_pairs_is_an_error_that_names_the_picture(change):
    truths = change(mme_truths())
    with pytest.raises(
        DataError, match=r"Picture '\d.png' of category '\w+' has (1 question\.|3 questions\.)"
    ):
        METRICS["mme"].total(np.ones(len(truths)), truths)


def test_a_mean_over_tasks_counts_each_task_the_same():
    truths = [Truth(answers=("A",), category="count")] * 9 + [Truth(answers=("A",), category="order")]
    scores = np.array([1.0] * 9 + [0.0])
    assert METRICS["choice"].total(scores, truths) == pytest.approx(90)
    assert METRICS["choice_by_category"].total(scores, truths) == pytest.approx(50)
    assert METRICS["choice"].parts(scores, truths) == {"count": 100, "order": 0}


def test_random_letters_score_chance_within_their_interval():
    rng = random.Random(1)
    for options in (2, 3, 4, 5):
        truths = [
            Truth(
                answers=("ABCDE"[rng.randrange(options)],),
                options=("red", "blue", "up", "two", "no")[:options],
            )
            for _ in range(4000)
        ]
        said = [
            rng.choice(("{}", "({})", "The answer is {}.")).format(rng.choice("ABCDE"[:options]))
            for _ in truths
        ]
        scores = METRICS["choice"].scores(said, truths)
        estimate = wilson(int(scores.sum()), len(scores))
        assert estimate.low - 0.01 < 1 / options < estimate.high + 0.01


def test_a_constant_letter_scores_the_share_of_its_truths():
    truths = [Truth(answers=(letter,), options=("red", "blue", "green")) for letter in "ABCAAB"]
    assert METRICS["choice"].scores(["A"] * 6, truths).mean() == pytest.approx(3 / 6)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_names_its_source_and_travels_between_processes(name):
    metric = METRICS[name]
    assert metric.name == name
    assert metric.version
    assert metric.source
    assert metric.unit
    assert pickle.loads(pickle.dumps(metric)).name == name


def test_a_metric_there_is_not_is_refused_with_the_closest_name():
    assert metric_named("anls") is METRICS["anls"]
    with pytest.raises(ConfigError, match=r"no metric 'anls_stra'(.|\n)*mean `anls_star`"):
        metric_named("anls_stra")


def test_a_headline_needs_scores():
    with pytest.raises(ValueError, match="at least one score"):
        METRICS["anls"].total(np.array([]), [])
