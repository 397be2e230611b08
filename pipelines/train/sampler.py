"""Which packed sequences each step trains on: a function of the seed, equal on all workers and restarts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from casa_core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Step:
    """The data of one optimiser step.

    Attributes:
        kind: ``image`` or ``video``: all workers have the same kind in one step, as in the paper (B.1).
        sequences: Global numbers of the packed sequences.
    """

    kind: str
    sequences: tuple[int, ...]


class StepSampler:
    """The sequences of each step.

    Each kind has an endless order of its own: one shuffle after another of all its sequences. Kinds alternate
    in a fixed pattern that keeps the ratio at every point of the run, with video steps spread evenly.

    Args:
        by_kind: Kind → global numbers of its sequences.
        ratio: Steps of (image, video) in one round of the pattern.
        sequences_per_step: Kind → sequences per step, over all workers.
        seed: Seed of the shuffles.

    Raises:
        ConfigError: If the ratio asks for a kind that the data does not have.
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
                    f"`train.image_video_ratio = {list(ratio)}` asks for {kind} steps.",
                    f"The packed data has no {kind} sequence.",
                    "Set that side of the ratio to 0, or add a source.",
                )
        self._numbers = {kind: np.asarray(numbers) for kind, numbers in by_kind.items()}
        self._pattern = _interleave(*ratio)
        self._per_step = dict(sequences_per_step)
        self._seed = seed

    def __getitem__(self, step: int) -> Step:
        """Step ``step``, from 0."""
        round_number, index = divmod(step, len(self._pattern))
        kind = self._pattern[index]
        nth = round_number * self._pattern.count(kind) + self._pattern[:index].count(kind)
        size = self._per_step[kind]
        return Step(kind, tuple(self._sequence(kind, nth * size + offset) for offset in range(size)))

    def _sequence(self, kind: str, index: int) -> int:
        numbers = self._numbers[kind]
        epoch, position = divmod(index, len(numbers))
        return int(numbers[_shuffle(len(numbers), self._seed, kind, epoch)[position]])


@lru_cache(maxsize=8)
def _shuffle(length: int, seed: int, kind: str, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, sum(kind.encode()), epoch]).permutation(length)


def _interleave(images: int, videos: int) -> tuple[str, ...]:
    """``(3, 1)`` → image, image, image, video; ``(2, 2)`` → image, video, image, video."""
    total = images + videos
    return tuple(
        "video" if (index + 1) * videos // total > index * videos // total else "image"
        for index in range(total)
    )


def hold_out(
    by_kind: Mapping[str, NDArray[np.int64]], count: int, *, seed: int
) -> tuple[dict[str, NDArray[np.int64]], dict[str, tuple[int, ...]]]:
    """Hold out sequences of each kind, the same for any number of workers.

    Returns:
        Kind → sequences to train on, and kind → held-out sequences; kinds without sequences are in neither.

    Raises:
        ConfigError: If that is more than half of a kind.
    """
    rest, held = {}, {}
    for kind, numbers in by_kind.items():
        if not len(numbers):
            continue
        if 2 * count > len(numbers):
            raise ConfigError(
                f"`train.held_out_sequences = {count}`: the pack has {len(numbers)} {kind} sequences.",
                "Held-out sequences are not trained on, and that would be more than half.",
                f"Hold out {len(numbers) // 2} or fewer, or set train.evaluate_every to 0.",
            )
        chosen = _shuffle(len(numbers), seed, f"held out {kind}", 0)[:count]
        held[kind] = tuple(sorted(int(number) for number in numbers[chosen]))
        rest[kind] = np.delete(numbers, chosen)
    return rest, held


def share_of(sequences: Sequence[int], rank: int, world_size: int) -> tuple[int, ...]:
    """One worker's sequences of a step; the last workers have one fewer where it does not divide evenly."""
    return tuple(sequences[rank::world_size])


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which part of every step a worker takes.

    Attributes:
        rank, world_size: This worker, and the number of workers.
        sequences_per_forward: Packed sequences per forward; ``None``: the whole share in one forward.
    """

    rank: int = 0
    world_size: int = 1
    sequences_per_forward: int | None = None

    def of(self, sequences: Sequence[int]) -> list[tuple[int, ...]]:
        """The sequences of each of this worker's forwards.

        Every worker has equally many forwards, because ZeRO's workers reduce together; the last ones are
        empty where the step does not divide evenly.
        """
        own = share_of(sequences, self.rank, self.world_size)
        largest = -(-len(sequences) // self.world_size)
        size = self.sequences_per_forward or max(largest, 1)
        count = max(-(-largest // size), 1)
        return [own[index * size : (index + 1) * size] for index in range(count)]
