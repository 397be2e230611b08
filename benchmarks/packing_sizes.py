"""Sizes of a million samples like FineVision's, for measuring packers: text and image tokens of each.

Nothing here was counted on the corpus itself, which could not be reached: shares of the families, picture
sizes and lengths of text are assumed (``FAMILIES``). Image tokens follow exactly from the assumed picture
sizes, at 896² with patches of 14 merged two by two. Text over the budget is cut to it: such samples are split
or quarantined before packing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casa_core.media.images import ImageSettings

Ints = NDArray[np.int64]
IMAGES = ImageSettings(patch_size=14, merge_size=2, max_side=896, min_side=56)
PICTURES = 4000
"""Different picture sizes drawn per family."""
TURN_TOKENS = 10
"""Of the template around a turn."""


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of data set.

    Attributes:
        share: Its share of the samples.
        width: Range of the pictures' widths, pixels, drawn log-uniformly; ``None``: no pictures.
        aspect: Range of height divided by width.
        pictures: Fewest and most pictures per sample.
        turns: Mean number of questions (1 and a Poisson number more).
        median: Text tokens of a turn.
        spread: Standard deviation of their logarithm.
    """

    share: float
    width: tuple[int, int] | None
    aspect: tuple[float, float]
    pictures: tuple[int, int]
    turns: float
    median: float
    spread: float


FAMILIES = {
    "captions": Family(0.20, (300, 1600), (0.55, 1.5), (1, 1), 1, 130, 0.7),
    "short questions": Family(0.30, (480, 640), (0.6, 1.34), (1, 1), 5, 22, 0.5),
    "document pages": Family(0.12, (850, 1700), (1.29, 1.42), (1, 1), 6, 45, 0.6),
    "charts": Family(0.12, (500, 1000), (0.5, 0.9), (1, 1), 3, 45, 0.6),
    "lines of text": Family(0.06, (100, 900), (0.1, 0.5), (1, 1), 1, 60, 0.9),
    "diagrams and mathematics": Family(0.08, (200, 900), (0.4, 1.2), (1, 1), 1, 250, 0.6),
    "text alone": Family(0.10, None, (1, 1), (0, 0), 1.5, 350, 0.8),
    "several pictures": Family(0.02, (480, 640), (0.6, 1.34), (2, 8), 2, 90, 0.7),
    "long answers": Family(0.0, None, (1, 1), (0, 0), 1, 1200, 0.15),
}
MIXES: dict[str, tuple[float, dict[str, float]]] = {
    "FineVision-like": (1.0, {}),
    "images bind": (0.1, {"several pictures": 0.4}),
    "both bind": (0.145, {"several pictures": 0.15}),
    "most above half a budget": (1.0, {"long answers": 1.5}),
}
"""Name → factor on the length of text, and shares that differ. Where both bind, the totals of text and of
images, relative to their budgets, differ by less than 1 %. In the last, most samples take more than half a
budget and never meet another of these: no packer comes near the bound by sums."""


def draw(count: int, mix: str, seed: int = 0) -> tuple[Ints, Ints]:
    """Text and image tokens of ``count`` samples, families mixed; each fits into 2,048 and 20,480."""
    rng = np.random.default_rng(seed)
    longer, changed = MIXES[mix]
    share = np.array([changed.get(name, family.share) for name, family in FAMILIES.items()])
    kind = rng.choice(len(FAMILIES), count, p=share / share.sum())
    text, image = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for number, family in enumerate(FAMILIES.values()):
        own = np.flatnonzero(kind == number)
        turns = 1 + rng.poisson(family.turns - 1, len(own))
        words = longer * family.median * np.exp(rng.normal(0, family.spread, int(turns.sum())))
        np.add.at(text, np.repeat(own, turns), np.maximum(4, words).astype(np.int64) + TURN_TOKENS)
        if family.width is not None:
            tokens = _tokens(family, rng)
            pictures = rng.integers(family.pictures[0], family.pictures[1] + 1, len(own))
            drawn = tokens[rng.integers(0, len(tokens), int(pictures.sum()))]
            np.add.at(image, np.repeat(own, pictures), drawn)
    return np.minimum(text, 2048), np.minimum(image, 20_480)


def _tokens(family: Family, rng: np.random.Generator) -> Ints:
    assert family.width is not None
    narrow, wide = (float(np.log(side)) for side in family.width)
    width = np.exp(rng.uniform(narrow, wide, PICTURES))
    height = width * rng.uniform(family.aspect[0], family.aspect[1], PICTURES)
    return np.array([IMAGES.size(int(h), int(w)).tokens for h, w in zip(height, width, strict=True)])
