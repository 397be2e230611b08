"""Means over few seeds with 95 % confidence intervals (Student's t). Pure functions."""

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
        mean: Mean of the values.
        low, high: Ends; infinite for a single value.
        values: Number of values.
    """

    mean: float
    low: float
    high: float
    values: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the mean differs from zero at the 5 % level."""
        return not self.low <= 0 <= self.high


def t_interval(values: Sequence[float]) -> Interval:
    """Student's interval for the mean of normally distributed values.

    Raises:
        ValueError: If there are no values.
    """
    count = len(values)
    if not count:
        raise ValueError("An interval needs at least one value.")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = T_95[min(count - 1, len(T_95)) - 1] * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Interval of the mean difference of two variants; paired, so that a seed's influence on both cancels.

    Args:
        values, baseline: One value per seed, in the same order of seeds.
    """
    return t_interval([value - base for value, base in zip(values, baseline, strict=True)])
