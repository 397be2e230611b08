"""Encoded samples → one packed row, token by token: slow, and plain enough to be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def packed_row(
    documents: Sequence[tuple[str, Mapping[str, Any]]], kind: str, occurrences: Sequence[int] | None = None
) -> dict[str, Any]:
    """A row of ``PACK_SCHEMA`` from ``(source, row of ENCODED_SCHEMA)`` pairs, in order."""
    packed: dict[str, Any] = {
        name: []
        for name in ("input_ids", "loss_mask", "document_starts", "image_positions", "images", "documents")
    }
    for number, (source, document) in enumerate(documents):
        start = len(packed["input_ids"])
        packed["document_starts"].append(start)
        packed["input_ids"] += document["input_ids"]
        packed["loss_mask"] += document["loss_mask"]
        packed["image_positions"] += [start + position for position in document["image_positions"]]
        packed["images"] += [
            {"source": source, "row": document["row"], **image} for image in document["images"]
        ]
        packed["documents"].append(
            {name: document[name] for name in ("row", "sample_id", "part", "frames")}
            | {
                "source": source,
                "occurrence": occurrences[number] if occurrences else 0,
                "turns": [
                    {"start": start + turn["start"], "end": start + turn["end"]} for turn in document["turns"]
                ],
            }
        )
    packed["text_tokens"] = len(packed["input_ids"])
    packed["image_tokens"] = sum(image["tokens"] for image in packed["images"])
    packed["kind"] = kind
    return packed
