"""Tokenization of clean samples → token ids, image sizes and loss masks, before packing.

A sample that exceeds a budget is made to fit by a stated rule, otherwise quarantined: the frames of a whole
video become smaller or fewer (:mod:`casa_core.media.video_budget`), live streams are cut into windows, and
conversations are split between turns (:mod:`pipelines.data.pack.split`). Each task writes one Arrow shard
and, last, a report of it: a killed run resumes with the tasks that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from casa_core.errors import MediaError
from casa_core.media.video_budget import FittedSample, fit_sample
from casa_core.types import EncodedSample, Image, Sample
from pipelines.data.pack.budgets import Budget, Limits
from pipelines.data.pack.processor import Encoding, load_processor
from pipelines.data.pack.sequences import ENCODED_SCHEMA, encoded_row
from pipelines.data.pack.split import pieces, windows
from pipelines.data.pack.video_counts import VideoCounts
from pipelines.data.store.quarantine import Rejected, Tally, write_quarantine
from pipelines.data.store.readers import CleanReader, ShardReader
from pipelines.data.store.rows import CleanSample, Row, is_stream, is_video
from pipelines.data.store.shard_task import write_once
from pipelines.data.store.shard_writing import write_shard
from pipelines.storage.uri import Folder

if TYPE_CHECKING:
    from casa_core.processing.processor import CasaProcessor

SPLIT = "train"
"""Held-out samples are never packed."""
ENCODED = "encoded/3"

_COLUMNS = ("row", "part", "text_tokens", "image_tokens", "video")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeTask:
    """Rows ``start`` to ``stop`` of a source's clean artifact, to be written to ``output``.

    Attributes:
        keep: Which of these rows the filters kept; (stop − start,). The others are skipped.
    """

    source: str
    clean: Folder
    start: int
    stop: int
    keep: NDArray[np.bool_]
    output: Folder
    encoding: Encoding
    limits: Limits

    @property
    def report(self) -> Folder:
        """The report, written last: where it exists, the task is done."""
        return self.output.with_name(f"{self.output.name}.json")

    @property
    def quarantine(self) -> Folder:
        """The table of rejected samples."""
        return self.output.with_name(f"{self.output.name}.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeReport:
    """What became of a task's rows. E: encoded samples, in order; each piece of a split one counts.

    Attributes:
        row_E, part_E: Row of the clean artifact, and piece of its sample.
        text_E, image_E: Tokens.
        video_E: Which are videos.
        rejected: Rows that are quarantined; a table beside the shard lists the reasons.
        tally: The same rows, counted by reason.
        videos: What was done to fit videos to their budget.
    """

    row_E: NDArray[np.int32]
    part_E: NDArray[np.int32]
    text_E: NDArray[np.int32]
    image_E: NDArray[np.int32]
    video_E: NDArray[np.bool_]
    rejected: NDArray[np.int32]
    tally: Tally
    videos: VideoCounts


def encode_rows(task: EncodeTask) -> EncodeReport:
    """Encodes a task's rows into one Arrow shard of ``ENCODED_SCHEMA``, unless that was done before."""
    return _read_report(task, write_once(task.report, lambda: _write(task)))


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


def _write(task: EncodeTask) -> dict[str, Any]:
    """Writes the shard and the table of rejected samples; returns the report as JSON."""
    processor = load_processor(task.encoding)
    reader = CleanReader(task.clean, SPLIT)
    rejected: list[Rejected] = []
    videos = VideoCounts()

    def rows() -> Iterator[Row]:
        for number in (task.start + np.flatnonzero(task.keep)).tolist():
            clean = reader.sample(number)
            result = encode_sample(processor, number, clean, task.limits)
            if isinstance(result, Rejected):
                rejected.append(result)
                continue
            videos.count(clean.sample, result)
            yield from result

    schema = ENCODED_SCHEMA.with_metadata({**(ENCODED_SCHEMA.metadata or {}), "casa.source": task.source})
    write_shard(task.output, schema, rows())
    write_quarantine(task.quarantine, rejected)
    listed = {"rejected": [entry.row for entry in rejected], "videos": asdict(videos)}
    return Tally.of(rejected).to_json() | listed


def _read_report(task: EncodeTask, values: Mapping[str, Any]) -> EncodeReport:
    """From the files, whether this attempt wrote them or an earlier one."""
    shard = ShardReader([task.output], ENCODED)
    columns: dict[str, list[NDArray[np.int32]]] = {name: [np.empty(0, np.int32)] for name in _COLUMNS}
    at = 0
    while at < len(shard):
        batch, _ = shard.locate(at)
        at += batch.num_rows
        for name in _COLUMNS:
            columns[name].append(batch.column(name).to_numpy(zero_copy_only=False).astype(np.int32))
    row, part, text, image, video = (np.concatenate(columns[name]) for name in _COLUMNS)
    return EncodeReport(
        row_E=row,
        part_E=part,
        text_E=text,
        image_E=image,
        video_E=video.astype(bool),
        rejected=np.array(values["rejected"], np.int32),
        tally=Tally.from_json(values),
        videos=VideoCounts(**values["videos"]),
    )


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
