"""CIDEr-D agrees with its published equations, written as matrices over all n-grams."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from pipelines.evaluate.metrics.base import Truth
from pipelines.evaluate.metrics.by_name import METRICS

CIDER = METRICS["cider"]
WORDS = ("a", "red", "ball", "dog", "on", "the", "street", "runs")


def published(answers, truths):
    """Equations 1 to 3 of the paper with coco-caption's clipping and length penalty."""
    n_truths = [[caption.split() for caption in truth] for truth in truths]
    scores = []
    for answer, captions in zip(answers, n_truths, strict=True):
        per_caption = []
        for caption in captions:
            per_n = []
            for n in range(1, 5):
                grams = list(itertools.product(WORDS, repeat=n)) if n < 3 else None
                found = {
                    tuple(t[i : i + n]) for t in (answer.split(), caption) for i in range(len(t) - n + 1)
                }
                grams = sorted(found) if grams is None else grams
                vectors = []
                for said in (answer.split(), caption):
                    count = np.array(
                        [sum(tuple(said[i : i + n]) == g for i in range(len(said))) for g in grams]
                    )
                    holding = np.array(
                        [
                            sum(
                                any(g == tuple(c[i : i + n]) for c in cs for i in range(len(c)))
                                for cs in n_truths
                            )
                            for g in grams
                        ]
                    )
                    vectors.append(count * (np.log(len(truths)) - np.log(np.maximum(holding, 1))))
                own, other = vectors
                norms = np.linalg.norm(own) * np.linalg.norm(other) if len(grams) else 0
                per_n.append(np.minimum(own, other) @ other / norms if norms else 0)
            penalty = np.exp(-((len(answer.split()) - len(caption)) ** 2) / (2 * 6.0**2))
            per_caption.append(10 * np.mean(per_n) * penalty)
        scores.append(np.mean(per_caption))
    return np.array(scores)


def test_scores_are_those_of_the_published_equations():
    rng = random.Random(0)

    def caption():
        return " ".join(rng.choices(WORDS, k=rng.randint(0, 9)))

    truths = [[caption() or "a" for _ in range(rng.randint(1, 4))] for _ in range(25)]
    answers = [rng.choice((caption(), rng.choice(truth))) for truth in truths]
    scores = CIDER.scores(answers, [Truth(answers=tuple(truth)) for truth in truths])
    assert scores == pytest.approx(published(answers, truths) / 10)
    assert scores.max() > 0.1


def test_the_true_caption_scores_the_maximum_and_nothing_scores_zero():
    truths = [Truth(answers=(text,)) for text in ("a red ball on grass", "two dogs run fast today")]
    perfect = CIDER.scores(["A red ball on grass!", "Two dogs run fast today."], truths)
    assert CIDER.total(perfect, truths) == pytest.approx(1000)
    assert CIDER.total(CIDER.scores(["", "cat"], truths), truths) == 0


def test_only_cider_needs_the_whole_set():
    assert [name for name, metric in METRICS.items() if metric.needs_whole_set] == ["cider"]
