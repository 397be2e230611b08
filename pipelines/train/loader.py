"""Packed rows and the bytes they refer to → batches, decoded ahead of the step that needs them.

Row schema in: ``pack/2`` rows (ids and references) and ``clean/2`` media. Out:
:class:`casa_core.batch.PackedBatch`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from casa_core.batch import PackedBatch, PackedSequence, collate
from casa_core.engine.inputs import PreparedImage, prepare_image
from casa_core.errors import StoreError
from casa_core.media import VideoFrames, decode_image
from casa_core.processing import CasaProcessor
from pipelines.data.store import CleanReader, PackReader
from pipelines.storage import Folder
from pipelines.train.order import Step, StepOrder, share_of


class SequenceReader:
    """Packed sequences by global number, pictures decoded.

    Args:
        pack: The pack artifact, local or on S3.
        sources: Folder of each source's clean artifact, likewise.
        processor: Resizes and patchifies exactly as evaluation and serving do.
        images: ``False`` withholds every image: the blind baseline's data.
    """

    def __init__(
        self, pack: Folder, sources: Mapping[str, Folder], processor: CasaProcessor, *, images: bool = True
    ) -> None:
        self.pack = PackReader(pack)
        self._clean = (
            {name: CleanReader(folder, "train") for name, folder in sources.items()} if images else {}
        )
        self.processor = processor
        self.shows_images = images

    def __getitem__(self, number: int) -> PackedSequence:
        row = self.pack[number]
        images = self._prepare(row["images"]) if self.shows_images else []
        sequence = PackedSequence(
            input_ids=row["input_ids"],
            loss_mask=row["loss_mask"],
            document_starts=row["document_starts"],
            image_positions=row["image_positions"],
            image_tokens=[image.size.tokens for image in images],
            image_grids=[image.grid for image in images],
            patches_PE=[image.patches_PE for image in images],
        )
        return sequence if self.shows_images else sequence.without_images()

    def _prepare(self, references: list[dict[str, Any]]) -> list[PreparedImage]:
        """Decode each referenced picture once, and the frames of one video in one pass over it."""
        frames: dict[tuple[str, int, int], list[float]] = {}
        for reference in references:
            if reference["timestamp"] is not None:
                frames.setdefault(_media_key(reference), []).append(reference["timestamp"])
        data = self._media({_media_key(reference) for reference in references})
        videos = {key: iter(VideoFrames(data[key]).at(times)) for key, times in frames.items()}
        prepared = []
        for reference in references:
            key = _media_key(reference)
            rgb = next(videos[key]) if key in videos else decode_image(data[key])
            image = prepare_image(rgb, self.processor, frame=reference["timestamp"] is not None)
            if image.size.tokens != reference["tokens"]:
                raise StoreError(
                    f"row {key[1]} of {key[0]} gives {image.size.tokens} image tokens, "
                    f"{reference['tokens']} were packed",
                    "the packed data was made with other image settings",
                    "run the pack stage again",
                )
            prepared.append(image)
        return prepared

    def _media(self, keys: set[tuple[str, int, int]]) -> dict[tuple[str, int, int], bytes]:
        """The encoded bytes of all that a sequence refers to: together, so that S3 is asked few times."""
        found: dict[tuple[str, int, int], bytes] = {}
        for source in sorted({key[0] for key in keys}):
            own = sorted(key for key in keys if key[0] == source)
            found |= zip(own, self._clean[source].media_of([key[1:] for key in own]), strict=True)
        return found


def _media_key(reference: dict[str, Any]) -> tuple[str, int, int]:
    return reference["source"], reference["row"], reference["media"]


def blank_picture(processor: CasaProcessor) -> PackedSequence:
    """One small picture, one text token that sees it, no loss: for a worker whose share of a step has none.

    Without it this worker would give the vision side no gradients while the others do, and ZeRO's workers
    must all reduce the same. It adds one text and one image token to the counts, nothing to the gradient.
    """
    side = processor.patch_size * processor.merge_size
    image = prepare_image(np.zeros((side, side, 3), dtype=np.uint8), processor)
    return PackedSequence(
        input_ids=[processor.image_id],
        loss_mask=[False],
        document_starts=[0],
        image_positions=[0],
        image_tokens=[image.size.tokens],
        image_grids=[image.grid],
        patches_PE=[image.patches_PE],
    )


@dataclass(frozen=True, slots=True)
class LoadedStep:
    """A worker's part of one step.

    Attributes:
        number: The step, from 0.
        step: What all workers together train on in it.
        batch: This worker's part of it.
    """

    number: int
    step: Step
    batch: PackedBatch


def iterate_steps(
    reader: SequenceReader,
    order: StepOrder,
    *,
    start: int,
    stop: int,
    rank: int,
    world_size: int,
    device: torch.device | str = "cpu",
    ahead: int = 2,
) -> Iterator[LoadedStep]:
    """Steps ``start`` … ``stop − 1`` of one worker, ``ahead`` of them in preparation at any time.

    The position is the step number alone: resuming from step n needs no state and reads nothing twice.
    """

    def load(number: int) -> LoadedStep:
        step = order[number]
        own = [reader[sequence] for sequence in share_of(step.sequences, rank, world_size)]
        if reader.shows_images and not any(sequence.patches_PE for sequence in own):
            own.append(blank_picture(reader.processor))
        return LoadedStep(number, step, collate(own, device))

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
        pending: list[Future[LoadedStep]] = []
        following = iter(range(start, stop))
        for _ in range(stop - start):
            while len(pending) <= ahead and (number := next(following, None)) is not None:
                pending.append(pool.submit(load, number))
            yield pending.pop(0).result()
