"""Exact match of short answers: the rules of GQA, of RealWorldQA, and this project's own. Pure functions."""

from __future__ import annotations

import string

from pipelines.evaluate.metrics.answers import exact_match
from pipelines.evaluate.metrics.base import Metric, Truth, without_stop
from pipelines.evaluate.metrics.characters import same_characters
from pipelines.evaluate.metrics.choice import chosen_letter

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactMatch(Metric):
    """Equal after `answers.normalise`: the rule of the held-out test sets, for a benchmark of one's own."""

    name = "exact_match"
    version = "2"
    source = "this project, `pipelines.evaluate.metrics.answers`"

    def score(self, answer: str, truth: Truth) -> float:
        """1 where the answer equals any of the truth's."""
        return float(any(exact_match(answer, right) for right in truth.answers))


class GqaMatch(Metric):
    """Equal in lower case and without ASCII punctuation; runs of white space count as one blank."""

    name = "gqa_match"
    version = "1"
    source = "lmms-eval's exact_match with ignore_case and ignore_punctuation, as in CASA's scripts/eval.py"

    def score(self, answer: str, truth: Truth) -> float:
        """1 where the answer equals any of the truth's."""
        return float(any(_plain(answer) == _plain(right) for right in truth.answers))


class RealWorldMatch(Metric):
    """A letter from A to D is found by `choice.chosen_letter`; any other truth is equal up to case and a
    trailing full stop."""

    name = "realworldqa_match"
    version = "1"
    source = "xAI's RealWorldQA as in lmms-eval's realworldqa (2026-04), letters by `choice.chosen_letter`"

    def score(self, answer: str, truth: Truth) -> float:
        """1 where the answer is the truth's first."""
        right = same_characters(truth.answers[0].strip())
        if right.upper() in ("A", "B", "C", "D"):
            return float(chosen_letter(answer, truth.options, letters="ABCD") == right.upper())
        return float(same_characters(without_stop(answer, right)).lower() == right.lower())


def _plain(text: str) -> str:
    return " ".join(same_characters(text).lower().translate(_NO_PUNCTUATION).split())
