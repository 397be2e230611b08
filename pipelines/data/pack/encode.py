"""Tokenization of clean samples → token ids, image sizes and loss masks, before packing.

A sample that exceeds a budget is made to fit by a stated rule, otherwise quarantined: the frames of a whole
video become smaller or fewer (:mod:`casa_core.media.video_budget`), live streams are cut into windows, and
conversations are split between turns (:mod:`pipelines.data.pack.split`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from casa_core.errors import MediaError
from casa_core.media.video_budget import FittedSample, fit_sample
from casa_core.types import EncodedSample, Image, Sample
from pipelines.data.pack.budgets import Budget, Limits
from pipelines.data.pack.sequences import encoded_row
from pipelines.data.pack.split import pieces, windows
from pipelines.data.store.quarantine import Rejected
from pipelines.data.store.rows import CleanSample, Row, is_stream, is_video

if TYPE_CHECKING:
    from casa_core.processing.processor import CasaProcessor

SPLIT = "train"
"""Held-out samples are never packed."""
ENCODED = "encoded/3"


def encode_sample(
    processor: CasaProcessor, number: int, clean: CleanSample, limits: Limits
) -> list[Row] | Rejected:
    """One sample as rows of ``ENCODED_SCHEMA``, one per piece; rejected where it cannot be trained on.

    ``number`` is the sample's row in the clean artifact. The bytes of its media are not needed.
    """
    sample = clean.sample
    budget = limits.video if is_video(sample) else limits.pictures
    try:
        fitted = fit_sample(processor.image_settings, sample, _natives(clean), budget.image)
    except MediaError as error:
        return _reject(number, clean, error.reason, f"{error.what} {error.why}".strip())
    image = sum(size.tokens for size in fitted.sizes)
    cut = limits.split and is_stream(sample)
    if image > budget.image and not cut:
        return _reject(number, clean, "over_image_budget", _over(image, "image", budget.image))
    encoded = processor.encode(fitted.sample, fitted.sizes)
    text = len(encoded.input_ids)
    if not any(encoded.loss_mask):
        return _reject(number, clean, "nothing_to_train", "No token of an answer is trained.")
    found: list[tuple[Sample, EncodedSample]] | None = [(fitted.sample, encoded)]
    if text > budget.text or image > budget.image:
        found = _split(processor, fitted, clean.meta, budget) if limits.split else None
    if found is None and text > budget.text:
        return _reject(number, clean, "over_text_budget", _over(text, "text", budget.text))
    if found is None:
        return _reject(number, clean, "over_image_budget", _over(image, "image", budget.image))
    frames = None if cut else len(_natives(clean))
    return [
        encoded_row(number, piece, own, part, most_tokens=fitted.most_tokens, frames=frames)
        for part, (piece, own) in enumerate(found)
    ]


def _natives(clean: CleanSample) -> list[tuple[int, int]]:
    """(height, width) of each image of the sample, as decoded."""
    shown = [clean.media[part.media] for part in clean.sample.parts if isinstance(part, Image)]
    return [(media.height, media.width) for media in shown]


def _over(tokens: int, kind: str, budget: int) -> str:
    return f"The sample has {tokens:,} {kind} tokens; a sequence holds {budget:,}."


def _split(
    processor: CasaProcessor, fitted: FittedSample, meta: Mapping[str, Any], budget: Budget
) -> list[tuple[Sample, EncodedSample]] | None:
    """Pieces that each fit, encoded; ``None`` where the sample cannot be split."""
    images = [part for part in fitted.sample.parts if isinstance(part, Image)]
    # Equal for all images that share their bytes: of still pictures, and of a video's frames.
    size_of = {(image.media, image.role): size for image, size in zip(images, fitted.sizes, strict=True)}

    def encode(piece: Sample) -> EncodedSample:
        shown = [part for part in piece.parts if isinstance(part, Image)]
        return processor.encode(piece, [size_of[image.media, image.role] for image in shown])

    def fits(piece: Sample) -> bool:
        encoded = encode(piece)
        image = sum(size.tokens for size in encoded.images)
        return len(encoded.input_ids) <= budget.text and image <= budget.image

    if is_stream(fitted.sample):
        most = budget.image // min(size.tokens for size in fitted.sizes)
        found = windows(fitted.sample, fits, most, str(meta.get("previous") or ""))
    else:
        found = pieces(fitted.sample, fits)
    return None if found is None else [(piece, encode(piece)) for piece in found]


def _reject(number: int, clean: CleanSample, reason: str, detail: str) -> Rejected:
    return Rejected(
        source=clean.sample.source,
        file=SPLIT,
        row=number,
        sample_id=clean.sample.sample_id,
        reason=reason,
        detail=detail,
        sha256=clean.media[0].sha256 if clean.media else "",
    )
