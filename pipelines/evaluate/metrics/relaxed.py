"""Relaxed accuracy of ChartQA: numbers may be five per cent off, texts must be equal. Pure functions."""

from __future__ import annotations

from pipelines.evaluate.metrics.base import Metric, Truth, without_stop
from pipelines.evaluate.metrics.characters import same_characters

TOLERANCE = 0.05


class RelaxedAccuracy(Metric):
    """ChartQA's rule: right within 5 % of the truth where both are numbers, else equal up to case.

    A number is what ``float`` reads, and such a text followed by ``%``, which is divided by 100. So ``2%``
    is 0.02 and not 2, and ``1,000``, ``$5`` and ``three`` are texts. A truth of 0 is compared as a text.
    """

    name = "relaxed_accuracy"
    version = "1"
    source = (
        "Masry et al., ChartQA (2022), section 5.1, as in lmms-eval's chartqa (from Qwen-VL's evaluation); "
        "trailing full stop stripped as in CASA's scripts/eval.py"
    )

    def score(self, answer: str, truth: Truth) -> float:
        """1 where any of the truth's answers is met."""
        return float(any(is_close(answer, right) for right in truth.answers))


def is_close(answer: str, truth: str) -> bool:
    """Whether the answer is the truth by the rule of `RelaxedAccuracy`."""
    said, right = same_characters(without_stop(answer, truth)), same_characters(truth.strip())
    value, target = _number(said), _number(right)
    if value is not None and target:
        return abs(value - target) / abs(target) <= TOLERANCE
    return said.lower() == right.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None
