"""Short answers to questions about pictures: exact match, every question type counting the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from casa_core.engine.protocol import EngineProtocol
from casa_core.engine.requests import GenerationRequest, SamplingParams
from casa_core.types import Image, Sample, Text
from pipelines.evaluate.benchmarks.base import (
    EvalSample,
    Prediction,
    Scoreboard,
    ScoreRow,
    Settings,
    constant,
)
from pipelines.evaluate.metrics.scores import accuracy_by_type, chance_by_type, equal_weight_mean, exact_match

ALL_TYPES = "mean of types"


class Vqa:
    """Questions with one short right answer, asked greedily; later turns of a chat see true earlier ones."""

    name = "vqa"

    def accepts(self, sample: Sample) -> bool:
        """Anything with a trained assistant turn and no live frames."""
        live = any(isinstance(part, Image) and part.role == "assistant" for part in sample.parts)
        return not live and any(isinstance(part, Text) and part.trained for part in sample.parts)

    def batch_size(self, settings: Settings) -> int:
        """Questions are answered together."""
        return settings.batch_size

    def run(
        self, engine: EngineProtocol, held_out: Sequence[EvalSample], settings: Settings
    ) -> list[Prediction]:
        """Ask every question of every sample in one batch."""
        blind = bool(engine.info["blind"])
        asked = [
            (held, turn, *question)
            for held in held_out
            for turn, question in enumerate(questions(held.sample))
        ]
        sampling = SamplingParams(max_new_tokens=settings.max_new_tokens)
        requests = [
            GenerationRequest(
                sample=without_bytes(sample) if blind else sample,
                sampling=sampling,
                request_id=f"{held.row}/{turn}",
            )
            for held, turn, sample, _ in asked
        ]
        results = engine.generate(requests) if requests else []
        return [
            Prediction(
                row=held.row,
                turn=turn,
                sample_id=held.sample.sample_id,
                question_type=str(held.meta.get("question_type", "all")),
                question=_last_question(sample),
                truth=truth,
                answer=result.text.strip(),
                correct=exact_match(result.text, truth),
            )
            for (held, turn, sample, truth), result in zip(asked, results, strict=True)
        ]

    def score(self, outcomes: Mapping[str, Sequence[Prediction]], settings: Settings) -> Scoreboard:
        """Accuracy by question type and its equal-weight mean, beside each type's most frequent answer."""
        lines = []
        for model, answers in outcomes.items():
            cells = accuracy_by_type((o.question_type, o.correct is True) for o in answers)
            key = "accuracy" if model == "model" else f"{model}_accuracy"
            lines.append(ScoreRow(name=model, key=key, cells={**cells, ALL_TYPES: equal_weight_mean(cells)}))
        truths = [(o.question_type, o.truth) for o in outcomes["model"]]
        chance = chance_by_type(truths)
        mean = sum(chance.values()) / len(chance)
        cells = constant([*chance.items(), (ALL_TYPES, mean)], len(truths))
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
    """Each trained answer of a conversation, and the conversation up to it: ``(what to ask, the truth)``."""
    for index, part in enumerate(sample.parts):
        if isinstance(part, Text) and part.trained:
            yield replace(sample, parts=sample.parts[:index]), part.text


def without_bytes(sample: Sample) -> Sample:
    """The same conversation with every image's place kept and its bytes gone: nothing is left to look at."""
    parts = tuple(replace(part, data=None) if isinstance(part, Image) else part for part in sample.parts)
    return replace(sample, parts=parts)


def _last_question(sample: Sample) -> str:
    return next(
        part.text for part in reversed(sample.parts) if isinstance(part, Text) and part.role == "user"
    )
