"""Shares between 0 and 1 with their 95 % confidence intervals. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution: every interval here is a 95 % one."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, such as a share between 0 and 1, with its 95 % confidence interval.

    Attributes:
        value: The point estimate.
        low, high: Ends of the interval; ``low <= value <= high``.
        count: How many items (answers, clips) it rests on.
    """

    value: float
    low: float
    high: float
    count: int


def wilson(correct: int, count: int) -> Estimate:
    """A share of successes with Wilson's score interval (1927), which has a width even at 0 % and 100 %.

    Raises:
        ValueError: If ``count`` is below 1 or ``correct`` is outside ``0…count``.
    """
    if count < 1 or not 0 <= correct <= count:
        raise ValueError(f"A share needs 0 <= correct <= count and count >= 1; got {correct} of {count}.")
    share = correct / count
    denominator = 1 + Z_95**2 / count
    centre = (share + Z_95**2 / (2 * count)) / denominator
    spread = Z_95 / denominator * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2))
    # Exactly 0 and 1 at the ends; rounding would leave them a few 1e-17 off the point estimate.
    low = 0.0 if correct == 0 else centre - spread
    high = 1.0 if correct == count else centre + spread
    return Estimate(share, low, high, count)


def equal_weight_mean(groups: Mapping[str, Estimate]) -> Estimate:
    """The mean over groups, each counting the same however many items it has.

    The interval combines the groups' own intervals (Zou and Donner 2008, recovery of variances), so that it
    neither collapses at 100 % nor depends on a random resampling.

    Raises:
        ValueError: If there is no group.
    """
    if not groups:
        raise ValueError("A mean over question types needs at least one type.")
    estimates = list(groups.values())
    value = sum(e.value for e in estimates) / len(estimates)
    below = math.sqrt(sum((e.value - e.low) ** 2 for e in estimates)) / len(estimates)
    above = math.sqrt(sum((e.high - e.value) ** 2 for e in estimates)) / len(estimates)
    count = sum(e.count for e in estimates)
    return Estimate(value, max(0.0, value - below), min(1.0, value + above), count)


def constants(values: Iterable[tuple[str, float]], count: int) -> dict[str, Estimate]:
    """Estimates of values that do not vary, as a fixed baseline's: ``low`` and ``high`` equal the value."""
    return {name: Estimate(value, value, value, count) for name, value in values}
