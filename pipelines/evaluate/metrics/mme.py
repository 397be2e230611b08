"""MME: yes or no, two questions per picture; accuracy plus accuracy+ over 14 categories. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from casa_core.errors import DataError
from pipelines.evaluate.metrics.base import Clusters, FloatArray, Metric, Truth, clustered

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


class Mme(Metric):
    """A category counts accuracy, the share of right answers, plus accuracy+, the share of pictures of which
    both answers are right, each times 100; the headline adds all categories up (2800 in all).

    ``truth.group`` names the picture: two questions each. Accuracy is a mean over pairs as well, so that a
    pair is worth 0, 0.5 or 2.
    """

    name = "mme"
    version = "1"
    source = "Fu et al., MME (2023), section 2.3, and its evaluation tool, as in lmms-eval's mme (from Otter)"
    unit = "points"
    scale = 100.0
    sums_strata = True

    def score(self, answer: str, truth: Truth) -> float:
        """1 where the answer is the truth's *yes* or *no*."""
        return float(yes_or_no(answer) == yes_or_no(truth.answers[0]))

    def clusters(self, scores: FloatArray, truths: Sequence[Truth]) -> Clusters:
        """One cluster per pair, every category a stratum.

        Raises:
            DataError: Where a picture has not two questions.
        """
        pairs = clustered(scores, truths, by_category=True)
        if np.any(pairs.weights != 2):
            raise _unpaired(truths)
        return replace(
            pairs, points=pairs.points / 2 + (pairs.points == 2), weights=np.ones_like(pairs.weights)
        )

    def parts(self, scores: FloatArray, truths: Sequence[Truth]) -> dict[str, float]:
        """Points of perception and of cognition, then of each category."""
        pairs = self.clusters(scores, truths)
        points = {
            name: self.scale * float(pairs.points[pairs.strata == number].mean())
            for number, name in enumerate(pairs.names)
        }
        sums = {
            title: sum(points.get(name, 0.0) for name in names)
            for title, names in (("Perception", PERCEPTION), ("Cognition", COGNITION))
        }
        return sums | points


def yes_or_no(text: str) -> str:
    """``yes``, ``no`` or ``other``: the word itself or its first letter, or a *yes*, else a *no*, within the
    first four characters of a longer answer; case and full stops make no difference."""
    said = text.lower().strip().replace(".", "")
    if len(said) == 1:
        return {"y": "yes", "n": "no"}.get(said, "other")
    return next((word for word in ("yes", "no") if word in said[:4]), "other")


def _unpaired(truths: Sequence[Truth]) -> DataError:
    counts = Counter((truth.category, truth.group) for truth in truths)
    (category, group), count = next(item for item in counts.items() if item[1] != 2 or not item[0][1])
    return DataError(
        "MME cannot be scored: its questions do not come in pairs.",
        f"Picture {group!r} of category {category!r} has {count} question{'s' * (count != 1)}.",
        "Evaluate both questions of every picture; a subset must keep the pairs together.",
    )
