"""The ``card.json`` of a pack artifact: how full the budgets are, and what a perfect packing could reach."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.data.pack.budgets import Limits, lower_bound
from pipelines.data.pack.plan import EncodedSamples, Plan

_FILL_BINS = 20


def pack_card(encoded: EncodedSamples, plan: Plan, limits: Limits) -> dict[str, Any]:
    """Counts, fill, lower bound, shares and histograms.

    The lower bound of pictures is tokens divided by budget, the larger of the two. Each video has a sequence
    of its own, so their bound is their number. ``fill`` is relative to the budget of a sequence's kind.
    ``sources`` counts different ``rows``, and every occurrence: ``samples`` of rows, ``documents`` of pieces,
    ``without_images`` of rows that show none.
    """
    text_S, image_S = _per_sequence(encoded.text_E, plan), _per_sequence(encoded.image_E, plan)
    of_text = text_S / np.where(plan.video_S, limits.video.text, limits.pictures.text)
    of_image = image_S / np.where(plan.video_S, limits.video.image, limits.pictures.image)
    by_kind = {}
    for kind, own_S in (("image", ~plan.video_S), ("video", plan.video_S)):
        count = int(own_S.sum())
        bound = count
        if kind == "image":
            bound = lower_bound(int(text_S[own_S].sum()), int(image_S[own_S].sum()), limits.pictures)
        by_kind[kind] = {
            "sequences": count,
            "lower_bound": bound,
            "fill": {"text": _mean(of_text[own_S]), "image": _mean(of_image[own_S])},
        }
    return {
        "schema": "pack/3",
        "budget": asdict(limits.pictures) | {"video": asdict(limits.video)},
        "sequences": len(plan),
        "lower_bound": sum(entry["lower_bound"] for entry in by_kind.values()),
        "text_tokens": int(text_S.sum()),
        "image_tokens": int(image_S.sum()),
        "fill": {"text": _mean(of_text), "image": _mean(of_image)},
        "by_kind": by_kind,
        "sources": realised(encoded, plan),
        "histograms": {"text": _histogram(of_text), "image": _histogram(of_image)},
        "sample_histograms": {
            "text": _powers_of_two(encoded.text_E),
            "image": _powers_of_two(encoded.image_E),
        },
    }


def realised(encoded: EncodedSamples, plan: Plan) -> dict[str, dict[str, int]]:
    """What each source contributes to the sequences, by its name."""
    passes_E = np.bincount(plan.sample_M, minlength=len(encoded))
    found = {}
    for number, name in enumerate(encoded.sources):
        passes, first = encoded.of(number, passes_E), encoded.of(number, encoded.part_E) == 0
        found[name] = {
            "rows": int(first.sum()),
            "samples": int(passes[first].sum()),
            "documents": int(passes.sum()),
            "without_images": int(passes[first & (encoded.of(number, encoded.image_E) == 0)].sum()),
            "text_tokens": int(passes @ encoded.of(number, encoded.text_E)),
            "image_tokens": int(passes @ encoded.of(number, encoded.image_E)),
        }
    return found


def _per_sequence(tokens_E: NDArray[np.int32], plan: Plan) -> NDArray[np.int64]:
    """Tokens of each sequence; (sequences,)."""
    # Sums up to each member: a sequence's are the difference of two of them.
    upto_M = np.empty(len(plan.sample_M) + 1, np.int64)
    upto_M[0] = 0
    np.cumsum(tokens_E[plan.sample_M], out=upto_M[1:])
    return np.diff(upto_M[plan.offsets_S])


def _mean(share: NDArray[np.float64]) -> float:
    return round(float(share.mean()), 4) if len(share) else 0.0


def _histogram(share: NDArray[np.float64]) -> dict[str, list[float] | list[int]]:
    counts, edges = np.histogram(share, bins=_FILL_BINS, range=(0.0, 1.0))
    return {"edges": [round(float(edge), 4) for edge in edges], "counts": counts.tolist()}


def _powers_of_two(tokens: NDArray[np.int32]) -> dict[str, list[int]]:
    """How many samples have 0, 1, 2–3, 4–7, … tokens."""
    top = int(tokens.max(initial=1)).bit_length()
    edges = [0, *(1 << power for power in range(top + 1))]
    counts, _ = np.histogram(tokens, bins=edges)
    return {"edges": edges, "counts": counts.tolist()}
