"""Which packed sequences make up which step. A pure function of the seed, so that any worker, any number of
workers and any restart agree without talking to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from casa_core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step's share of the data.

    Attributes:
        kind: ``image`` or ``video``: all workers see the same kind in one step, as in the paper (B.1).
        sequences: Global numbers of its packed sequences.
    """

    kind: str
    sequences: tuple[int, ...]


class StepSampler:
    """Sequences of each step.

    Each kind has its own endless order: one shuffle after another of all its sequences. Kinds alternate in a
    fixed pattern that keeps the ratio at every point of the run, video spread evenly between images.

    Args:
        by_kind: Global numbers of the sequences of each kind.
        ratio: Steps of (image, video) in one round.
        sequences_per_step: Of each kind, over all workers.
        seed: Of the shuffles.

    Raises:
        ConfigError: If the ratio asks for a kind the data does not have.
    """

    def __init__(
        self,
        by_kind: Mapping[str, Sequence[int] | NDArray[np.int64]],
        *,
        ratio: tuple[int, int],
        sequences_per_step: Mapping[str, int],
        seed: int,
    ) -> None:
        for kind, share in zip(("image", "video"), ratio, strict=True):
            if share and not len(by_kind.get(kind, ())):
                raise ConfigError(
                    f"train.image_video_ratio = {list(ratio)} asks for {kind} steps",
                    f"the packed data has no {kind} sequence",
                    "set that side of the ratio to 0, or add a source",
                )
        self._numbers = {kind: np.asarray(numbers) for kind, numbers in by_kind.items()}
        self._pattern = _interleave(*ratio)
        self._per_step = dict(sequences_per_step)
        self._seed = seed

    def __getitem__(self, step: int) -> Step:
        """Step ``step``, from 0."""
        round_number, place = divmod(step, len(self._pattern))
        kind = self._pattern[place]
        nth = round_number * self._pattern.count(kind) + self._pattern[:place].count(kind)
        size = self._per_step[kind]
        return Step(kind, tuple(self._sequence(kind, nth * size + index) for index in range(size)))

    def _sequence(self, kind: str, index: int) -> int:
        epoch, place = divmod(index, len(self._numbers[kind]))
        return int(self._numbers[kind][_shuffle(len(self._numbers[kind]), self._seed, kind, epoch)[place]])


@lru_cache(maxsize=8)
def _shuffle(length: int, seed: int, kind: str, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, sum(kind.encode()), epoch]).permutation(length)


def _interleave(images: int, videos: int) -> tuple[str, ...]:
    """``(3, 1)`` → image, image, image, video; ``(2, 2)`` → image, video, image, video."""
    total = images + videos
    return tuple(
        "video" if (place + 1) * videos // total > place * videos // total else "image"
        for place in range(total)
    )


def hold_out(
    by_kind: Mapping[str, NDArray[np.int64]], count: int, *, seed: int
) -> tuple[dict[str, NDArray[np.int64]], dict[str, tuple[int, ...]]]:
    """Set sequences of each kind aside, the same for any number of workers.

    Returns:
        What is left to train on, and what is held out, by kind; kinds without sequences are in neither.

    Raises:
        ConfigError: If that were more than half of a kind.
    """
    rest, held = {}, {}
    for kind, numbers in by_kind.items():
        if not len(numbers):
            continue
        if 2 * count > len(numbers):
            raise ConfigError(
                f"train.held_out_sequences = {count}: the pack has {len(numbers)} {kind} sequences",
                "what is held out is not trained on, and that would be more than half",
                f"hold out {len(numbers) // 2} or fewer, or set train.evaluate_every to 0",
            )
        chosen = _shuffle(len(numbers), seed, f"held out {kind}", 0)[:count]
        held[kind] = tuple(sorted(int(number) for number in numbers[chosen]))
        rest[kind] = np.delete(numbers, chosen)
    return rest, held


def share_of(sequences: Sequence[int], rank: int, world_size: int) -> tuple[int, ...]:
    """The sequences one worker takes of a step; every worker takes equally many or, at the end, one fewer."""
    return tuple(sequences[rank::world_size])
