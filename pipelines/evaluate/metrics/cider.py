"""CIDEr-D: a caption's n-grams beside those of true captions, rare ones counting more. Pure functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np

from pipelines.evaluate.metrics.base import FloatArray, Metric, Truth
from pipelines.evaluate.metrics.characters import words

LONGEST = 4
SIGMA = 6.0
"""Words that a caption may differ in length, before that costs much."""

Ngram = tuple[str, ...]
Vector = list[dict[Ngram, float]]
"""tf-idf weights of the n-grams of each length from 1 to ``LONGEST``."""


class Cider(Metric):
    """Mean over n = 1…4, and over the true captions, of the clipped cosine of tf-idf vectors of n-grams,
    times a Gaussian of the difference in length. How rare an n-gram is, the true captions of the set say.

    A score here is a tenth of the published one, whose maximum is 10; the headline is the customary
    hundredfold. Words are those of `characters.words`, without the Penn Treebank's tokenizer and its Java.
    """

    name = "cider"
    version = "1"
    source = "Vedantam et al., CIDEr (2015), equations 1 to 3, in the variant D of coco-caption (sigma 6)"
    unit = "CIDEr-D x 100"
    scale = 1000.0
    needs_whole_set = True

    def score(self, answer: str, truth: Truth) -> float:
        """The score in a set of one question, which is 0: no n-gram is rarer than another there."""
        return float(self.scores([answer], [truth])[0])

    def scores(self, answers: Iterable[str], truths: Iterable[Truth]) -> FloatArray:
        """Scores of a whole set, [n]; of a part of it they would differ."""
        right = [[_counts(text) for text in truth.answers] for truth in truths]
        seen = Counter(gram for captions in right for gram in set().union(*captions))
        pictures = math.log(max(len(right), 1))

        def weighted(counts: Counter[Ngram]) -> Vector:
            vector: Vector = [{} for _ in range(LONGEST)]
            for gram, count in counts.items():
                vector[len(gram) - 1][gram] = count * (pictures - math.log(max(seen[gram], 1)))
            return vector

        def one(answer: Counter[Ngram], captions: list[Counter[Ngram]]) -> float:
            own = weighted(answer)
            alike = [_similarity(own, weighted(c)) * _penalty(answer, c) for c in captions]
            return sum(alike) / len(alike)

        return np.array([one(_counts(a), c) for a, c in zip(answers, right, strict=True)], dtype=np.float64)


def _counts(text: str) -> Counter[Ngram]:
    said = words(text)
    return Counter(tuple(said[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(said) - n + 1))


def _similarity(own: Vector, other: Vector) -> float:
    values = []
    for mine, theirs in zip(own, other, strict=True):
        dot = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
        norm = math.hypot(*mine.values()) * math.hypot(*theirs.values())
        values.append(dot / norm if norm else 0.0)
    return sum(values) / LONGEST


def _penalty(answer: Counter[Ngram], caption: Counter[Ngram]) -> float:
    lengths = (sum(n for gram, n in counts.items() if len(gram) == 1) for counts in (answer, caption))
    return math.exp(-((next(lengths) - next(lengths)) ** 2) / (2 * SIGMA**2))
