"""Data loader: packed rows and the media they refer to → batches, decoded ahead of the step that needs them.

Row schema in: ``pack/3`` rows (ids and references) and ``clean/3`` media. Out:
:class:`casa_core.batch.PackedBatch`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from casa_core.batch import PackedBatch, PackedSequence, collate
from casa_core.engine.inputs import PreparedImage, prepare_image
from casa_core.errors import DataError, MediaError, StoreError
from casa_core.media.decode import decode_pictures
from casa_core.processing.processor import CasaProcessor
from pipelines.data.store.readers import CleanReader, PackReader
from pipelines.data.store.shard_writing import CARD
from pipelines.storage.uri import Folder
from pipelines.train.sampler import Share, Step, StepSampler


@dataclass(frozen=True, slots=True)
class Document:
    """The origin of a document in a batch.

    Attributes:
        source, sample_id: As in the clean artifact.
        trained_tokens: Its answer tokens in the batch.
    """

    source: str
    sample_id: str
    trained_tokens: int


Read = tuple[PackedSequence, tuple[Document, ...]]


class SequenceReader:
    """Packed sequences by global number, with decoded pictures.

    Args:
        pack: The pack artifact, local or on S3.
        sources: Source → its clean artifact, local or on S3.
        processor: Resizes and patchifies exactly as evaluation and serving do.
        images: ``False`` withholds every image: the blind baseline's data.
        dtype: Dtype of patches: the model's, so that no wider copy waits in host memory.

    Attributes:
        sources: Names of all sources, in an order that every worker shares.
        budgets: Kind → text and image tokens that a sequence may hold, where the pack records them.
    """

    def __init__(
        self,
        pack: Folder,
        sources: Mapping[str, Folder],
        processor: CasaProcessor,
        *,
        images: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.pack = PackReader(pack)
        self._clean = (
            {name: CleanReader(folder, "train") for name, folder in sources.items()} if images else {}
        )
        self.processor = processor
        self.shows_images, self.dtype = images, dtype
        self.sources = tuple(sorted(sources))
        self.budgets = _budgets(pack)

    def __getitem__(self, number: int) -> PackedSequence:
        return self.read(number)[0]

    def read(self, number: int) -> tuple[PackedSequence, tuple[Document, ...]]:
        """A sequence, and the origin of its documents.

        Raises:
            DataError: If a picture or frame cannot be decoded.
            StoreError: If an artifact is missing, or was packed under other image settings.
        """
        row = self.pack[number]
        images = self._prepare(row["images"]) if self.shows_images else []
        sequence = PackedSequence(
            input_ids=row["input_ids"],
            loss_mask=row["loss_mask"],
            document_starts=row["document_starts"],
            image_positions=row["image_positions"],
            image_tokens=[image.size.tokens for image in images],
            image_grids=[image.grid for image in images],
            patches_PE=[image.patches_PE.to(self.dtype) for image in images],
        )
        return sequence if self.shows_images else sequence.without_images(), _documents(row)

    def _prepare(self, references: list[dict[str, Any]]) -> list[PreparedImage]:
        """Decode each referenced picture, and all frames of one video in one pass over it."""
        data = self._media({_media_key(reference) for reference in references})
        decoded = decode_pictures([(data[_media_key(own)], own["timestamp"]) for own in references])
        prepared = []
        for reference in references:
            key = _media_key(reference)
            try:
                rgb = next(decoded)
            except MediaError as error:
                raise DataError(
                    f"Media {key[2]} of row {key[1]} of {key[0]} cannot be decoded.",
                    f"{error.what} Cleaning has read it, so its file has changed since.",
                    "Restore the clean artifact, or remove it and run again.",
                ) from error
            image = prepare_image(
                rgb,
                self.processor,
                frame=reference["timestamp"] is not None,
                most_tokens=reference["most_tokens"],
            )
            if image.size.tokens != reference["tokens"]:
                raise StoreError(
                    f"Row {key[1]} of {key[0]} gives {image.size.tokens} image tokens, "
                    f"{reference['tokens']} were packed.",
                    "The packed data was made with other image settings.",
                    "Run the pack stage again.",
                )
            prepared.append(image)
        return prepared

    def _media(self, keys: set[tuple[str, int, int]]) -> dict[tuple[str, int, int], bytes]:
        """The encoded media that a sequence refers to, read in one go per source: few requests to S3."""
        found: dict[tuple[str, int, int], bytes] = {}
        for source in sorted({key[0] for key in keys}):
            own = sorted(key for key in keys if key[0] == source)
            found |= zip(own, self._clean[source].media_of([key[1:] for key in own]), strict=True)
        return found


def _budgets(pack: Folder) -> dict[str, tuple[int, int]]:
    """Kind → (text tokens, image tokens), from the pack's card; empty where it records none."""
    try:
        budget = json.loads((pack / CARD).read_text())["budget"]
    except FileNotFoundError:
        return {}
    kinds = {"image": budget, "video": budget["video"]}
    return {kind: (own["text"], own["image"]) for kind, own in kinds.items()}


def _documents(row: dict[str, Any]) -> tuple[Document, ...]:
    starts = row["document_starts"]
    ends = [*starts[1:], len(row["input_ids"])]
    return tuple(
        Document(document["source"], document["sample_id"], sum(row["loss_mask"][start:end]))
        for document, start, end in zip(row["documents"], starts, ends, strict=True)
    )


def _media_key(reference: dict[str, Any]) -> tuple[str, int, int]:
    return reference["source"], reference["row"], reference["media"]


def blank_picture(processor: CasaProcessor) -> PackedSequence:
    """One small picture and one text token that attends to it, without loss, for a forward without pictures.

    Without it this worker's vision side would have no gradients while the others' has, and ZeRO's workers
    must all reduce the same tensors. It adds one text and one image token to the counts, and no gradient.
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
class MicroBatch:
    """The input of one forward.

    Attributes:
        batch: Packed sequences, in host memory.
        documents: In the batch's order; a blank picture at its end is not one.
    """

    batch: PackedBatch
    documents: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class LoadedStep:
    """A worker's part of one step.

    Attributes:
        number: The step, from 0.
        step: The data of all workers.
        batches: This worker's part, one per forward; equally many on every worker.
    """

    number: int
    step: Step
    batches: tuple[MicroBatch, ...]


def iterate_steps(
    reader: SequenceReader,
    order: StepSampler,
    *,
    start: int,
    stop: int,
    share: Share,
    ahead: int = 2,
    threads: int = 1,
) -> Iterator[LoadedStep]:
    """Steps ``start`` … ``stop − 1`` of one worker, in order, with ``ahead`` of them in preparation.

    ``threads`` threads read sequences and decode their pictures, and one more collates them, so that batches
    are ready before their step where decoding keeps up. An error is raised in the step that needs the data.
    """
    decoders = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode")
    collator = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collate")

    def prepare(number: int) -> Future[LoadedStep]:
        step = order[number]
        reading = [
            [decoders.submit(reader.read, sequence) for sequence in sequences]
            for sequences in share.of(step.sequences)
        ]
        return collator.submit(assemble, number, step, reading)

    def assemble(number: int, step: Step, reading: Sequence[Sequence[Future[Read]]]) -> LoadedStep:
        batches = (micro_batch(reader, [future.result() for future in own]) for own in reading)
        return LoadedStep(number, step, tuple(pinned(micro) for micro in batches))

    pending: deque[Future[LoadedStep]] = deque()
    following = iter(range(start, stop))
    try:
        for _ in range(start, stop):
            while len(pending) <= ahead and (number := next(following, None)) is not None:
                pending.append(prepare(number))
            yield pending.popleft().result()
    finally:
        for pool in (decoders, collator):
            pool.shutdown(wait=True, cancel_futures=True)


def load_batches(reader: SequenceReader, share: Share, sequences: Sequence[int]) -> Iterator[MicroBatch]:
    """This worker's part of some sequences, one batch per forward, read when the iterator advances."""
    return (
        micro_batch(reader, [reader.read(number) for number in numbers]) for numbers in share.of(sequences)
    )


def micro_batch(reader: SequenceReader, read: Sequence[Read]) -> MicroBatch:
    """Collate sequences, with a blank picture where there are no sequences or no pictures."""
    own = [sequence for sequence, _ in read]
    if not own or (reader.shows_images and not any(sequence.patches_PE for sequence in own)):
        blank = blank_picture(reader.processor)
        own.append(blank if reader.shows_images else blank.without_images())
    return MicroBatch(collate(own), tuple(document for _, documents in read for document in documents))


def pinned(micro: MicroBatch) -> MicroBatch:
    """The batch in pinned memory, which a GPU copies from while it computes; unchanged without a GPU."""
    return replace(micro, batch=micro.batch.pin_memory()) if torch.cuda.is_available() else micro
