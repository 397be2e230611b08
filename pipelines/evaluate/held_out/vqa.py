"""Short answers to questions about pictures: exact match, every question type weighted equally."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from casa_core.types import Sample, Text
from pipelines.data.store.rows import is_stream
from pipelines.evaluate.benchmarks.layout.benchmark import Question
from pipelines.evaluate.held_out.board import BenchmarkSettings, Prediction, Scoreboard, ScoreRow
from pipelines.evaluate.kept.answers import Caption
from pipelines.evaluate.metrics.answers import accuracy_by_type, chance_by_type, exact_match
from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.intervals import constants, equal_weight_mean

ALL_TYPES = "mean of types"


class Vqa:
    """Questions with one short right answer, asked greedily; later turns of a chat see true earlier ones."""

    name = "vqa"

    def accepts(self, sample: Sample) -> bool:
        """Anything with a trained assistant turn and no live frames."""
        return not is_stream(sample) and any(isinstance(part, Text) and part.trained for part in sample.parts)

    def questions(self, sample: Sample, meta: Mapping[str, Any]) -> Iterator[Question]:
        """Each trained answer of a conversation, asked for by the conversation up to it."""
        kind = str(meta.get("question_type", "all"))
        for index, part in enumerate(sample.parts):
            if isinstance(part, Text) and part.trained:
                asked = replace(sample, parts=sample.parts[:index])
                truth = Truth(answers=(part.text,), category=kind)
                yield Question(id=sample.sample_id, sample=asked, truth=truth)

    def max_new_tokens(self, settings: BenchmarkSettings) -> int:
        """The recipe's."""
        return settings.max_new_tokens

    def judged(self, prediction: Prediction, sample: Sample, captions: Sequence[Caption]) -> Prediction:
        """Right by exact match."""
        return replace(prediction, correct=exact_match(prediction.answer, prediction.truth))

    def score(
        self, predictions: Mapping[str, Sequence[Prediction]], settings: BenchmarkSettings
    ) -> Scoreboard:
        """Accuracy by question type and its equal-weight mean, beside each type's most frequent answer."""
        lines = []
        for model, answers in predictions.items():
            cells = accuracy_by_type((o.question_type, o.correct is True) for o in answers)
            key = "accuracy" if model == "model" else f"{model}_accuracy"
            lines.append(ScoreRow(name=model, key=key, cells={**cells, ALL_TYPES: equal_weight_mean(cells)}))
        truths = [(o.question_type, o.truth) for o in predictions["model"]]
        chance = chance_by_type(truths)
        mean = sum(chance.values()) / len(chance)
        cells = constants([*chance.items(), (ALL_TYPES, mean)], len(truths))
        return Scoreboard(
            benchmark=self.name,
            title="Questions about pictures",
            measure="exact-match accuracy",
            columns=(*chance, ALL_TYPES),
            headline=ALL_TYPES,
            lines=(*lines, ScoreRow(name="chance", key="chance", cells=cells)),
            notes=(f"{len(truths)} held-out questions; chance always gives a type's most frequent answer",),
        ).compared(*chance)
