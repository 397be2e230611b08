"""OCRBench: the truth must occur in the answer; a score out of 1000. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.evaluate.metrics.base import FloatArray, Metric, Truth, without_stop
from pipelines.evaluate.metrics.characters import same_characters

FORMULAS = "Handwritten Mathematical Expression Recognition"
"""The question type of HME100k, whose truths are LaTeX: blanks make no difference there, case does."""
CATEGORIES = {
    "Regular Text Recognition": "Text Recognition",
    "Irregular Text Recognition": "Text Recognition",
    "Artistic Text Recognition": "Text Recognition",
    "Handwriting Recognition": "Text Recognition",
    "Digit String Recognition": "Text Recognition",
    "Non-Semantic Text Recognition": "Text Recognition",
    "Scene Text-centric VQA": "Scene Text-centric VQA",
    "Doc-oriented VQA": "Doc-oriented VQA",
    "Key Information Extraction": "Key Information Extraction",
    FORMULAS: FORMULAS,
}
"""Question type → one of the five categories."""

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: ord(" ")}


class OcrBench(Metric):
    """Right where one of the truths is part of the answer, both in lower case and with ordinary instead of
    full-width characters; formulas without blanks, and with their case.

    The headline is the share of right answers times 1000: on the 1000 questions, their number.
    """

    name = "ocrbench"
    version = "1"
    source = (
        "Liu et al., OCRBench (2024), as in lmms-eval's ocrbench of July 2026; "
        "trailing full stop stripped as in CASA's scripts/eval.py"
    )
    unit = "of 1000"
    scale = 1000.0

    def score(self, answer: str, truth: Truth) -> float:
        """1 where any truth occurs in the answer; ``truth.category`` is the question type."""
        form = _formula if truth.category == FORMULAS else _text
        return float(
            any(form(right) in form(without_stop(answer, right)) for right in truth.answers if form(right))
        )

    def parts(self, scores: FloatArray, truths: Sequence[Truth]) -> dict[str, float]:
        """Number of right answers in each of the five categories (of 300, 200, 200, 200 and 100)."""
        found = dict.fromkeys(CATEGORIES.values(), 0.0)
        for score, truth in zip(scores, truths, strict=True):
            name = CATEGORIES.get(truth.category, truth.category)
            found[name] = found.get(name, 0.0) + float(score)
        return found


def _text(text: str) -> str:
    return same_characters(text.translate(_FULL_WIDTH)).lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return same_characters(text).strip().replace("\n", " ").replace(" ", "")
