"""Token budgets of a packed sequence, and lower bounds on the number of sequences.

Shape suffix: N samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Budget:
    """The most text tokens and the most image tokens that a sequence may hold."""

    text: int
    image: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Budgets by kind of sequence, and what is done with a sample that exceeds them.

    Attributes:
        pictures: Budget of a sequence of samples with still pictures or without pictures.
        video: Budget of a video, which has a sequence of its own.
        split: Split samples between turns where that loses no context.
    """

    pictures: Budget
    video: Budget
    split: bool


def lower_bound(text_tokens: int, image_tokens: int, budget: Budget) -> int:
    """Fewest sequences by sums: tokens divided by budget, rounded up, the larger of the two."""
    return max(-(-text_tokens // budget.text), -(-image_tokens // budget.image))


def sized_bound(text_N: NDArray[np.integer], image_N: NDArray[np.integer], budget: Budget) -> int:
    """Fewest sequences when samples stay whole: Martello and Toth's bound L2, the larger of the two budgets'.

    At least ``lower_bound``, and far above it where many samples take more than half a budget: no two of them
    share a sequence.

    Args:
        text_N, image_N: Tokens of each sample, within the budget.
        budget: The limits of a sequence.
    """
    bound = lower_bound(int(text_N.sum()), int(image_N.sum()), budget)
    return max(bound, _large_items_bound(text_N, budget.text), _large_items_bound(image_N, budget.image))


def _large_items_bound(size_N: NDArray[np.integer], budget: int) -> int:
    """Sequences needed by the samples above half a budget, one each, and by what does not fit beside them.

    For any k up to half a budget: a sample above ``budget - k`` leaves no room for one of k or more. Those
    from k up to a half must therefore fit beside the other large ones, or take sequences of their own.
    """
    counts = np.bincount(size_N, minlength=budget + 1)
    samples, tokens = _of_size_or_more(counts), _of_size_or_more(counts * np.arange(budget + 1))
    above_half = budget // 2 + 1
    k = np.arange(above_half)
    sharing = samples[above_half] - samples[budget + 1 - k]
    room = sharing * budget - (tokens[above_half] - tokens[budget + 1 - k])
    excess = int((tokens[k] - tokens[above_half] - room).max())
    return int(samples[above_half]) + max(0, -(-excess // budget))


def _of_size_or_more(per_size: NDArray[np.integer]) -> NDArray[np.integer]:
    """For each size, and for one more than the largest, the sum over it and all above."""
    return np.append(np.cumsum(per_size[::-1])[::-1], 0)
