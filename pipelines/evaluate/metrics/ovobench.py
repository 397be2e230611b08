"""OVO-Bench's rule: a letter, yes or no, or a number, by what the truth is; the mean over twelve tasks."""

from __future__ import annotations

import re

from pipelines.evaluate.metrics.base import CategoryMean, Truth
from pipelines.evaluate.metrics.choice import Choice


class OvoBench(CategoryMean):
    """The mean over tasks, as its script's "Total Avg."."""

    name = "ovobench"
    version = "1"
    source = "OVO-Bench's utils/OVOBenchScore.py; letters by `choice`"

    def score(self, answer: str, truth: Truth) -> float:
        """1 where the letter is right (`Choice`), the answer's digits are the number, or the answer begins
        with the right one of yes and no; the script accepts ``Y`` and ``N`` by themselves too."""
        right = truth.answers[0]
        if truth.options:
            return Choice().score(answer, truth)
        if right.isdigit():
            return float("".join(re.findall(r"\d", answer)) == right)
        said = re.match(r"\W*(yes|no|y|n)\b", answer.lower())
        return float(said is not None and said[1][0] == right[0].lower())
