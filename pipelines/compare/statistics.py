"""Means over few seeds, and how sure one may be of them. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""Two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom; beyond, the last."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        mean: Over the values.
        low, high: Ends; without bound where one value says nothing of its spread.
        values: How many.
    """

    mean: float
    low: float
    high: float
    values: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the values differ from zero by more than chance would often make them."""
        return not self.low <= 0 <= self.high


def t_interval(values: Sequence[float]) -> Interval:
    """Student's interval for the mean of values that scatter normally: wide for three.

    Raises:
        ValueError: For no values.
    """
    count = len(values)
    if not count:
        raise ValueError("no values")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = T_95[min(count - 1, len(T_95)) - 1] * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Of two variants, seed by seed: what both owe to a seed's luck cancels.

    Args:
        values, baseline: In the order of the seeds.
    """
    return t_interval([value - base for value, base in zip(values, baseline, strict=True)])
