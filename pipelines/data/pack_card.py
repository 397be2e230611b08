"""The card of a pack artifact: how well the budgets are filled, and what a perfect packing could reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.data.packing import Budget, lower_bound

_FILL_BINS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of a source's samples.

    Attributes:
        text, image: Of each sample; (samples,).
        video: Which samples are videos; (samples,).
    """

    source: str
    text: NDArray[np.int64]
    image: NDArray[np.int64]
    video: NDArray[np.bool_]


class Planned(Protocol):
    """A sequence: its kind, and its samples as (source number, number in the source)."""

    @property
    def kind(self) -> str: ...

    @property
    def samples(self) -> tuple[tuple[int, int], ...]: ...


def pack_card(lengths: Sequence[Lengths], sequences: Sequence[Planned], budget: Budget) -> dict[str, Any]:
    """Counts, fill, lower bound, shares and histograms.

    The lower bound of pictures is tokens divided by budget, the larger of the two; videos lie alone, so their
    bound is their number. ``fill`` counts all sequences, ``by_kind`` tells pictures and videos apart.
    """
    text_S, image_S, video_S = _sequence_tokens(lengths, sequences)
    by_kind = {
        kind: _kind_card(text_S[chosen], image_S[chosen], budget, alone=kind == "video")
        for kind, chosen in (("image", ~video_S), ("video", video_S))
    }
    return {
        "schema": "pack/1",
        "budget": {"text": budget.text, "image": budget.image},
        "sequences": len(sequences),
        "lower_bound": sum(entry["lower_bound"] for entry in by_kind.values()),
        "text_tokens": int(text_S.sum()),
        "image_tokens": int(image_S.sum()),
        "fill": _fill(text_S, image_S, budget),
        "by_kind": by_kind,
        "sources": {
            own.source: {
                "samples": len(own.text),
                "text_tokens": int(own.text.sum()),
                "image_tokens": int(own.image.sum()),
            }
            for own in lengths
        },
        "histograms": {
            "text": _histogram(text_S / budget.text),
            "image": _histogram(image_S / budget.image),
        },
        "sample_histograms": {
            "text": _powers_of_two(np.concatenate([own.text for own in lengths])),
            "image": _powers_of_two(np.concatenate([own.image for own in lengths])),
        },
    }


def _sequence_tokens(
    lengths: Sequence[Lengths], sequences: Sequence[Planned]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Text and image tokens of each sequence, and which hold a video; (sequences,) each."""
    text = [sum(int(lengths[s].text[n]) for s, n in sequence.samples) for sequence in sequences]
    image = [sum(int(lengths[s].image[n]) for s, n in sequence.samples) for sequence in sequences]
    video = [sequence.kind == "video" for sequence in sequences]
    return np.array(text, np.int64), np.array(image, np.int64), np.array(video, bool)


def _kind_card(
    text_S: NDArray[np.int64], image_S: NDArray[np.int64], budget: Budget, *, alone: bool
) -> dict[str, Any]:
    bound = len(text_S) if alone else lower_bound(int(text_S.sum()), int(image_S.sum()), budget)
    return {"sequences": len(text_S), "lower_bound": bound, "fill": _fill(text_S, image_S, budget)}


def _fill(text_S: NDArray[np.int64], image_S: NDArray[np.int64], budget: Budget) -> dict[str, float]:
    if not len(text_S):
        return {"text": 0.0, "image": 0.0}
    return {
        "text": round(float(text_S.mean() / budget.text), 4),
        "image": round(float(image_S.mean() / budget.image), 4),
    }


def _histogram(share: NDArray[np.float64]) -> dict[str, list[float] | list[int]]:
    counts, edges = np.histogram(share, bins=_FILL_BINS, range=(0.0, 1.0))
    return {"edges": [round(float(edge), 4) for edge in edges], "counts": counts.tolist()}


def _powers_of_two(tokens: NDArray[np.int64]) -> dict[str, list[int]]:
    """How many samples have 0, 1, 2–3, 4–7, … tokens."""
    top = int(tokens.max(initial=1)).bit_length()
    edges = [0, *(1 << power for power in range(top + 1))]
    counts, _ = np.histogram(tokens, bins=edges)
    return {"edges": edges, "counts": counts.tolist()}
