"""Samples of a clean artifact → token ids, image sizes and answer masks, before packing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from casa_core.errors import ConfigError, MediaError
from casa_core.types import Image, Sample
from pipelines.data.packing import Budget
from pipelines.data.quarantine import Rejected
from pipelines.data.rows import Row, is_video, sample_from_row
from pipelines.data.sequences import ENCODED_SCHEMA, encoded_row
from pipelines.data.store import CleanReader, write_shard

if TYPE_CHECKING:
    from casa_core.processing import CasaProcessor

SPLIT = "train"
"""Held-out samples are never packed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How samples become ids: what a worker needs to build the processor.

    Attributes:
        tokenizer: Folder of the tokenizer.
        template: Version of the chat template.
        backbone: Decides patch and merge size.
        max_side: R_max in pixels.
    """

    tokenizer: str
    template: str
    backbone: str
    max_side: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeTask:
    """Rows ``start`` to ``stop`` of a source's clean artifact, to be written to ``output``.

    Attributes:
        processor: Folder to save the processor to; one task of all does, since it has loaded one anyway.
    """

    source: str
    clean: Path
    start: int
    stop: int
    output: Path
    encoding: Encoding
    budget: Budget
    processor: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeReport:
    """What became of the rows of a task.

    Attributes:
        text, image: Tokens of each sample that was encoded, in order; (samples,).
        video: Which of them are videos; (samples,).
        rejected: The others.
        template_hash: Of the template that was used.
    """

    text: NDArray[np.int64]
    image: NDArray[np.int64]
    video: NDArray[np.bool_]
    rejected: tuple[Rejected, ...]
    template_hash: str


def encode_rows(task: EncodeTask) -> EncodeReport:
    """Encodes a task's rows into one Arrow shard of ``ENCODED_SCHEMA``."""
    processor = load_processor(task.encoding)
    reader = CleanReader(task.clean, SPLIT)
    rejected: list[Rejected] = []
    sizes: list[tuple[int, int, bool]] = []

    def rows() -> Iterator[Row]:
        for number in range(task.start, task.stop):
            row = reader.without_bytes(number)
            sample = sample_from_row(row, with_bytes=False)
            result = encode_sample(processor, number, row, sample, task.budget)
            if isinstance(result, Rejected):
                rejected.append(result)
                continue
            tokens = sum(image["tokens"] for image in result["images"])
            sizes.append((len(result["input_ids"]), tokens, is_video(sample)))
            yield result

    count = write_shard(task.output, ENCODED_SCHEMA, rows())
    if task.processor is not None:
        processor.save_pretrained(task.processor)
    assert count + len(rejected) == task.stop - task.start, "every sample is encoded or quarantined"
    table = np.array(sizes, np.int64).reshape(-1, 3)
    return EncodeReport(
        text=table[:, 0],
        image=table[:, 1],
        video=table[:, 2].astype(bool),
        rejected=tuple(rejected),
        template_hash=processor.template_hash(),
    )


def encode_sample(
    processor: CasaProcessor, number: int, row: Row, sample: Sample, budget: Budget
) -> Row | Rejected:
    """One sample as a row of ``ENCODED_SCHEMA``; rejected where it exceeds a budget or cannot be resized.

    Args:
        processor: Template, tokenizer and image sizes.
        number: The sample's row in the clean artifact.
        row: That row; only its media's sizes are looked at.
        sample: The same as a sample.
        budget: Of a sequence.
    """
    images = [part for part in sample.parts if isinstance(part, Image)]
    try:
        sizes = [
            processor.image_size(
                row["media"][image.media]["height"],
                row["media"][image.media]["width"],
                frame=image.timestamp is not None,
            )
            for image in images
        ]
    except MediaError as error:
        return _reject(number, row, error.reason, f"{error.what} {error.why}".strip())
    encoded = processor.encode(sample, sizes)
    text, image = len(encoded.input_ids), sum(size.tokens for size in sizes)
    if text > budget.text:
        return _reject(number, row, "over_text_budget", f"{text} text tokens; a sequence holds {budget.text}")
    if image > budget.image:
        return _reject(
            number, row, "over_image_budget", f"{image} image tokens; a sequence holds {budget.image}"
        )
    return encoded_row(number, sample, encoded)


@lru_cache(maxsize=2)
def load_processor(encoding: Encoding) -> CasaProcessor:
    """The processor that training and serving will use too; one a process."""
    from transformers import PreTrainedTokenizerFast

    from casa_core.processing import CasaProcessor

    tokenizer = PreTrainedTokenizerFast.from_pretrained(encoding.tokenizer)
    sides = patch_sides(encoding.backbone)
    return CasaProcessor(tokenizer, template=encoding.template, max_side=encoding.max_side, **sides)


def patch_sides(backbone: str) -> dict[str, Any]:
    """``patch_size`` and ``merge_size`` of a backbone's vision tower.

    Raises:
        ConfigError: For an unknown backbone.
    """
    from casa_core.config import TinyVisionConfig

    towers: dict[str, Any] = {"tiny": TinyVisionConfig}
    if backbone not in towers:
        raise ConfigError(
            f"There is no backbone named {backbone!r}.", "", f"Use one of: {', '.join(sorted(towers))}."
        )
    tower = towers[backbone]()
    return {"patch_size": tower.patch_size, "merge_size": tower.spatial_merge_size}


def _reject(number: int, row: Row, reason: str, detail: str) -> Rejected:
    return Rejected(
        source=row["source"],
        file=SPLIT,
        row=number,
        sample_id=row["sample_id"],
        reason=reason,
        detail=detail,
        sha256=row["media"][0]["sha256"] if row["media"] else "",
    )
