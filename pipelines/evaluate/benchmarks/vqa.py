"""Short answers to questions about pictures: exact match, every question type weighted equally."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from casa_core.engine.protocol import EngineProtocol
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.types import Image, Sample, Text
from pipelines.data.store.rows import is_stream
from pipelines.evaluate.benchmarks.base import (
    BenchmarkSettings,
    EvalSample,
    Prediction,
    Scoreboard,
    ScoreRow,
)
from pipelines.evaluate.metrics.answers import accuracy_by_type, chance_by_type, exact_match
from pipelines.evaluate.metrics.intervals import constants, equal_weight_mean

ALL_TYPES = "mean of types"


class Vqa:
    """Questions with one short right answer, asked greedily; later turns of a chat see true earlier ones."""

    name = "vqa"

    def accepts(self, sample: Sample) -> bool:
        """Anything with a trained assistant turn and no live frames."""
        return not is_stream(sample) and any(isinstance(part, Text) and part.trained for part in sample.parts)

    def batch_size(self, settings: BenchmarkSettings) -> int:
        """As many as the engine is to answer together."""
        return settings.batch_size

    def run(
        self, engine: EngineProtocol, samples: Sequence[EvalSample], settings: BenchmarkSettings
    ) -> list[Prediction]:
        """Ask every question of every sample in one batch."""
        blind = bool(engine.info["blind"])
        asked = [
            (own, turn, *question) for own in samples for turn, question in enumerate(questions(own.sample))
        ]
        sampling = SamplingParams(max_new_tokens=settings.max_new_tokens)
        requests = [
            GenerationRequest(
                sample=without_bytes(sample) if blind else sample,
                sampling=sampling,
                request_id=f"{own.row}/{turn}",
            )
            for own, turn, sample, _ in asked
        ]
        results = engine.generate(requests) if requests else []
        return [
            Prediction(
                row=own.row,
                turn=turn,
                sample_id=own.sample.sample_id,
                question_type=str(own.meta.get("question_type", "all")),
                question=_last_question(sample),
                truth=truth,
                answer=result.text.strip(),
                correct=exact_match(result.text, truth),
            )
            for (own, turn, sample, truth), result in zip(asked, results, strict=True)
        ]

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
        )


def questions(sample: Sample) -> Iterator[tuple[Sample, str]]:
    """Each trained answer of a conversation, and the conversation up to it: ``(prompt, truth)``."""
    for index, part in enumerate(sample.parts):
        if isinstance(part, Text) and part.trained:
            yield replace(sample, parts=sample.parts[:index]), part.text


def without_bytes(sample: Sample) -> Sample:
    """The conversation with its images' positions but without their bytes, for a blind model."""
    parts = tuple(replace(part, data=None) if isinstance(part, Image) else part for part in sample.parts)
    return replace(sample, parts=parts)


def _last_question(sample: Sample) -> str:
    return next(
        part.text for part in reversed(sample.parts) if isinstance(part, Text) and part.role == "user"
    )
