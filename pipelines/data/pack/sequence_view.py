"""A packed sequence for display: its documents, their attention windows, and which text is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from casa_core.fusion.windows import window_layout
from pipelines.data.pack.sequences import documents_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureView:
    """A picture or frame of a document.

    Attributes:
        source, row, media: The source's clean artifact, and the row and media there that hold its bytes.
        window: The document's attention window that it belongs to, from 1.
        original, resized: (width, height), pixels.
        tokens: Image tokens.
        timestamp: Seconds; ``None`` for a still picture.
    """

    source: str
    row: int
    media: int
    window: int
    original: tuple[int, int]
    resized: tuple[int, int]
    tokens: int
    timestamp: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanView:
    """Consecutive text tokens of one window that are all trained, or all masked.

    Attributes:
        window: From 1; 0 for text that no image precedes.
        trained: Whether the loss counts them.
        tokens: How many.
        text: Decoded, special tokens included.
    """

    window: int
    trained: bool
    tokens: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentView:
    """One sample, or one piece of a split one.

    Attributes:
        source, sample_id, occurrence: The sample, and its pass over the data, from 0.
        part: Piece of a split sample, from 0.
        start: Its first text token in the sequence.
        text_tokens, image_tokens: Its own.
        pictures, spans: In reading order.
    """

    source: str
    sample_id: str
    occurrence: int
    part: int
    start: int
    text_tokens: int
    image_tokens: int
    pictures: tuple[PictureView, ...]
    spans: tuple[SpanView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceView:
    """One packed sequence.

    Attributes:
        number: Its global number.
        kind: ``image`` or ``video``.
        text_tokens, image_tokens: Its own; ``text_budget``, ``image_budget``: what it may hold.
        trained_tokens: Text tokens that the loss counts.
    """

    number: int
    kind: str
    text_tokens: int
    image_tokens: int
    text_budget: int
    image_budget: int
    trained_tokens: int
    documents: tuple[DocumentView, ...]


def view_sequence(
    number: int, packed: Mapping[str, Any], budget: Mapping[str, Any], decode: Callable[[Sequence[int]], str]
) -> SequenceView:
    """A row of ``PACK_SCHEMA`` with its text decoded; ``budget`` is the artifact's card's."""
    own = budget.get("video", budget) if packed["kind"] == "video" else budget
    documents, start = [], 0
    for entry, document in zip(packed["documents"], documents_of(packed), strict=True):
        documents.append(_document(entry, document, start, decode))
        start += len(document.input_ids)
    return SequenceView(
        number=number,
        kind=packed["kind"],
        text_tokens=packed["text_tokens"],
        image_tokens=packed["image_tokens"],
        text_budget=own["text"],
        image_budget=own["image"],
        trained_tokens=sum(packed["loss_mask"]),
        documents=tuple(documents),
    )


def _document(
    entry: Mapping[str, Any], document: Any, start: int, decode: Callable[[Sequence[int]], str]
) -> DocumentView:
    tokens = [image["tokens"] for image in document.images]
    layout = window_layout(
        text_length=len(document.input_ids),
        document_starts=[0],
        image_positions=document.image_positions,
        image_tokens=tokens,
    )
    window_T = layout.text_window_T.tolist()
    marks = zip(window_T, document.loss_mask, document.input_ids, strict=True)
    spans = []
    for (window, trained), run in groupby(marks, key=lambda mark: mark[:2]):
        ids = [token for _, _, token in run]
        spans.append(SpanView(window=window + 1, trained=bool(trained), tokens=len(ids), text=decode(ids)))
    return DocumentView(
        source=document.source,
        sample_id=document.sample_id,
        occurrence=document.occurrence,
        part=entry.get("part", 0),
        start=start,
        text_tokens=len(document.input_ids),
        image_tokens=sum(tokens),
        pictures=tuple(
            _picture(image, window_T[position] + 1)
            for image, position in zip(document.images, document.image_positions, strict=True)
        ),
        spans=tuple(spans),
    )


def _picture(image: Mapping[str, Any], window: int) -> PictureView:
    return PictureView(
        source=image["source"],
        row=image["row"],
        media=image["media"],
        window=window,
        original=(image["original_width"], image["original_height"]),
        resized=(image["width"], image["height"]),
        tokens=image["tokens"],
        timestamp=image["timestamp"],
    )
