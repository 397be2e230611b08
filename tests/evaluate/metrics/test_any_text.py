"""Whatever a model writes, a metric gives a score between 0 and 1, the same every time, and soon."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.by_name import METRICS
from pipelines.evaluate.metrics.choice import chosen_letter

LETTERS = {name for name in METRICS if "choice" in name or name == "ai2d_official"}
texts = st.text(max_size=60) | st.text("AB(). :;,'\"\n answerisoptn", max_size=60)


@settings(max_examples=150, deadline=None)
@given(texts, st.lists(texts.filter(str.strip), min_size=1, max_size=4))
def test_every_text_has_a_score(answer, answers):
    for name, metric in METRICS.items():
        options = tuple(answers) if name in LETTERS else ()
        truth = Truth(
            answers=("A",) if name in LETTERS else tuple(answers), options=options, category="count"
        )
        assert 0 <= metric.score(answer, truth) <= 1
        assert metric.score(answer, truth) == metric.score(answer, truth)


@settings(max_examples=300, deadline=None)
@given(texts, st.lists(texts, max_size=4))
def test_a_letter_is_one_of_the_options_or_none(answer, options):
    assert chosen_letter(answer, options, letters="ABCD") in ("A", "B", "C", "D", "")


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    "text",
    [
        "answer ",
        "answer is ",
        " ",
        "( ",
        "A ",
        "a-",
        "'",
        "x'",
        "9,",
        "..",
        "the answer is ( ",
        "\u0301",
        "*",
    ],
)
def test_an_endless_answer_is_scored_within_a_second(name, text):
    truth = Truth(answers=("A",), options=("red", "blue"), category="count")
    start = time.perf_counter()
    METRICS[name].score(text * 4000, truth)
    assert time.perf_counter() - start < 1
