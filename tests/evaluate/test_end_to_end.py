"""Every benchmark from files in its documented layout to a result: of a real model, and of known answers."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from casa_core.engine.requests import GenerationRequest, GenerationResult
from pipelines.evaluate.benchmarks.catalogue import CATALOGUE
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.evaluation import Options, evaluate
from pipelines.evaluate.metrics.choice import Choice
from pipelines.evaluate.metrics.intervals import wilson
from pipelines.evaluate.model_engine import ModelEngine
from pipelines.evaluate.results import BenchmarkResult
from pipelines.evaluate.tables import TableQuestions
from tests.evaluate.benchmarks.test_layouts import CONSTANT
from tests.support.evaluate.checkpoint import TEXTS
from tests.support.evaluate.layouts import write_layout
from tests.support.serve.checkpoint import write_checkpoint

NAMES = [name for name, benchmark in CATALOGUE.items() if not benchmark.metric.needs_judge]
"""A judged one runs end to end in test_streams.py and test_judge.py."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model", TEXTS, context=4096)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], TableQuestions]:
    """A benchmark's files, so many times over; written once."""
    root, made = tmp_path_factory.mktemp("layouts"), dict[tuple[str, int], TableQuestions]()

    def layout(name: str, copies: int = 1) -> TableQuestions:
        if (name, copies) not in made:
            made[name, copies] = write_layout(name, root / f"{name}-{copies}", copies)
        return made[name, copies]

    return layout


def result_of(checkpoint: Path, source: TableQuestions, folder: Path) -> BenchmarkResult:
    [result] = evaluate("tiny", checkpoint, [source], Options(slots=4), folder / "store", folder / "out")
    return result


@pytest.mark.parametrize("name", NAMES)
def test_a_file_in_the_documented_layout_is_answered_and_scored(name, checkpoint, layouts, tmp_path):
    source = layouts(name)
    result = result_of(checkpoint, source, tmp_path)
    assert result.questions == len(source) > 0
    assert result.failed == {}
    assert result.score.metric == CATALOGUE[name].metric.name
    assert result.data["digest"] == source.digest


class Answerer:
    """Stands where the engine's client does, and gives the next answer that is known to each question."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.answers = answers

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        return GenerationResult(
            request_id=request.request_id,
            text=self.answers[request.request_id].pop(),
            token_ids=(),
            finish_reason="stop",
            prompt_tokens=0,
            image_tokens=0,
            completion_tokens=0,
        )


@pytest.fixture
def answered_by(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path
) -> Callable[..., BenchmarkResult]:
    """The result of an answerer: a function of the question."""

    def run(source: TableQuestions, answer: Callable[[Question], str]) -> BenchmarkResult:
        asked = [one for one in source.read(0, len(source)) if isinstance(one, Question)]
        answers = defaultdict[str, list[str]](list)
        for one in asked:  # copies of a row may have one id
            answers[one.id].append(answer(one))
        known: Any = Answerer(answers)
        monkeypatch.setattr(ModelEngine, "_loaded", property(lambda engine: known))
        return result_of(checkpoint, source, tmp_path)

    return run


@pytest.mark.parametrize("name", NAMES)
def test_an_oracle_scores_the_maximum(name, layouts, answered_by):
    result = answered_by(layouts(name), lambda question: question.truth.answers[0])
    assert result.score.value == pytest.approx({"mme": 2800, "ocrbench": 1000}.get(name, 100))
    assert result.score.low == result.score.value == result.score.high


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_answer_scores_what_arithmetic_says(name, layouts, answered_by):
    answer, expected = CONSTANT[name]
    assert answered_by(layouts(name), lambda question: answer).score.value == pytest.approx(expected)


@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(CATALOGUE[n].metric, Choice)])
def test_random_letters_score_chance_within_their_interval(name, layouts, answered_by):
    rng = random.Random(name)
    result = answered_by(
        layouts(name, 60), lambda question: rng.choice("ABCDE"[: len(question.truth.options)])
    )
    options = {len(one.truth.options) for one in layouts(name).read(0, 99) if isinstance(one, Question)}
    chance = 100 * sum(1 / count for count in options) / len(options)
    assert result.questions >= 120
    drawn = wilson(round(result.score.value / 100 * result.questions), result.questions)
    assert 100 * drawn.low - 1 < chance < 100 * drawn.high + 1
