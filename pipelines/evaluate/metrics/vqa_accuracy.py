"""VQA accuracy of TextVQA: an answer is right as far as the ten annotators gave it too. Pure functions."""

from __future__ import annotations

from collections import Counter

from pipelines.evaluate.metrics.base import Metric, Truth
from pipelines.evaluate.metrics.characters import same_characters
from pipelines.evaluate.metrics.vqa_text import vqa_normalise

AGREEING = 3
"""Annotators that have to give an answer, for it to be fully right."""


class VqaAccuracy(Metric):
    """Mean over annotators, each left out in turn, of ``min(1, others that gave the answer / 3)``.

    Answers are compared after `vqa_text.vqa_normalise`. With ten annotators of whom n gave the answer this is
    0, 0.3, 0.6, 0.9 and 1 for n = 0, 1, 2, 3 and at least 4.
    """

    name = "vqa_accuracy"
    version = "1"
    source = (
        "Antol et al., VQA (2015), section 4; leave-one-out and normalisation as in TextVQA's evaluation "
        "(mmf's EvalAIAnswerProcessor and TextVQAAccuracyEvaluator, which lmms-eval copies)"
    )

    def score(self, answer: str, truth: Truth) -> float:
        """The mean of the leave-one-out accuracies."""
        said = vqa_normalise(same_characters(answer))
        given = Counter(vqa_normalise(same_characters(right)) for right in truth.answers)
        agreeing, annotators = given[said], len(truth.answers)
        of_agreeing = agreeing * min(1.0, (agreeing - 1) / AGREEING)
        of_others = (annotators - agreeing) * min(1.0, agreeing / AGREEING)
        return (of_agreeing + of_others) / annotators
