"""ANLS and ANLS*: how few letters of a short answer are wrong. Pure functions."""

from __future__ import annotations

from pipelines.evaluate.metrics.base import Metric, Truth, without_stop
from pipelines.evaluate.metrics.characters import same_characters

THRESHOLD = 0.5
"""Similarities below count as 0: such an answer is another one, not a misread one."""


class Anls(Metric):
    """Average normalised Levenshtein similarity: 1 - distance / length of the longer text, the best of all
    truths; 0 below a half. Case and runs of white space make no difference."""

    name = "anls"
    version = "1"
    source = "Biten et al., Scene Text Visual Question Answering (2019), equation 1, as lmms-eval computes it"

    def score(self, answer: str, truth: Truth) -> float:
        """The similarity to the closest of the truth's answers."""
        return max(similarity(answer, right) for right in truth.answers)


class AnlsStar(Anls):
    """ANLS* of a text against alternative texts, which is `Anls`, after the trailing full stop is stripped.

    ANLS* also compares lists and dictionaries (Peer et al., 2024); no benchmark here has such answers.
    """

    name = "anls_star"
    version = "1"
    source = "Peer et al., ANLS* (2024), for texts; trailing full stop stripped as in CASA's scripts/eval.py"

    def score(self, answer: str, truth: Truth) -> float:
        """The similarity to the closest of the truth's answers."""
        return max(similarity(without_stop(answer, right), right) for right in truth.answers)


def similarity(answer: str, truth: str) -> float:
    """1 - Levenshtein distance / length of the longer text, both normalised; 0 where that is below 0.5."""
    said, right = (" ".join(same_characters(text).lower().split()) for text in (answer, truth))
    longest = max(len(said), len(right))
    if abs(len(said) - len(right)) > THRESHOLD * longest:
        return 0.0  # a distance is no less than that, and a long answer need not be compared
    value = 1.0 - levenshtein(said, right) / longest if longest else 1.0
    return value if value >= THRESHOLD else 0.0


def levenshtein(first: str, second: str) -> int:
    """Fewest insertions, deletions and substitutions of characters that make one text the other."""
    row = list(range(len(second) + 1))
    for number, char in enumerate(first, 1):
        diagonal, row[0] = row[0], number
        for at, other in enumerate(second, 1):
            cost = diagonal + (char != other)
            diagonal = row[at]
            row[at] = min(cost, row[at] + 1, row[at - 1] + 1)
    return row[-1]
