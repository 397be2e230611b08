"""Random packed sequences that fill a recipe's budgets, for dry runs, estimates and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from casa_core.batch import PackedSequence, collate
from casa_core.flops import Load
from casa_core.inputs import Packing
from pipelines.recipe.model import Recipe
from pipelines.recipe.pack import IMAGE_TOKEN_SIDES, frame_side
from pipelines.train.sampler import Share

if TYPE_CHECKING:
    from pipelines.train.loader import MicroBatch


@dataclass(frozen=True, slots=True)
class SequenceShape:
    """Sizes of a packed sequence.

    Attributes:
        text_tokens, images: How many.
        side: Side of each square image, in image tokens.
        patch_values: Values per patch; an image token is made of four patches.
        documents: Number of documents over which text and images are spread; a video is one.
    """

    text_tokens: int
    images: int
    side: int
    patch_values: int
    documents: int

    @property
    def image_tokens(self) -> int:
        """Image tokens of all images."""
        return self.images * self.side**2

    @property
    def document_starts(self) -> list[int]:
        """Text index at which each document starts; documents are as equally long as possible."""
        return [n * self.text_tokens // self.documents for n in range(self.documents)]

    @property
    def image_positions(self) -> list[int]:
        """Text index of each image: at a document's start, or for a video spread over its text."""
        if self.documents == self.images:
            return self.document_starts
        return [n * (self.text_tokens - 1) // self.images for n in range(self.images)]

    @property
    def load(self) -> Load:
        """The sizes that decide the number of operations."""
        packing = Packing(
            document_starts=self.document_starts,
            image_positions=self.image_positions,
            image_tokens=[self.side**2] * self.images,
        )
        return Load.of(packing, self.text_tokens, self.trained_tokens, [4 * self.side**2] * self.images)

    @property
    def trained_tokens(self) -> int:
        """Answer tokens: every second token of each document."""
        starts = [*self.document_starts, self.text_tokens]
        return sum((end - start) // 2 for start, end in pairwise(starts))


def shapes_of(recipe: Recipe) -> dict[str, SequenceShape]:
    """Kind → a full packed sequence of largest images, for each kind that the recipe trains on."""
    pack, backbone = recipe.pack, recipe.model.backbone
    pixels = IMAGE_TOKEN_SIDES[backbone]
    patch_values = 3 * 8 * 8 if backbone == "tiny" else 3 * 2 * 14 * 14
    video = pack.video or pack
    frame = frame_side(pack.max_side, pack.max_frame_side)
    shapes = {}
    for kind, steps, budget, side in (
        ("image", recipe.train.image_video_ratio[0], pack, pack.max_side),
        ("video", recipe.train.image_video_ratio[1], video, frame),
    ):
        if steps:
            each = (side // pixels) ** 2
            images = budget.image_tokens // each
            shapes[kind] = SequenceShape(
                budget.text_tokens, images, side // pixels, patch_values, images if kind == "image" else 1
            )
    return shapes


def forwards_of(recipe: Recipe, kind: str, workers: int) -> list[int]:
    """Packed sequences of each forward that one worker accumulates in a step of a kind."""
    share = Share(world_size=workers, sequences_per_forward=recipe.where.train.sequences_per_forward)
    return [len(own) for own in share.of(range(recipe.train.batch_sizes[kind]))]


def random_sequence(shape: SequenceShape, vocab_size: int, generator: torch.Generator) -> PackedSequence:
    """A packed sequence of random tokens and patches, of that shape."""
    ids = torch.randint(2, vocab_size, (shape.text_tokens,), generator=generator)
    patches_IPE = torch.randn(shape.images, 4 * shape.side**2, shape.patch_values, generator=generator)
    return _sequence(shape, ids.tolist(), patches_IPE)


def blank_sequence(shape: SequenceShape) -> PackedSequence:
    """A packed sequence of that shape, of one token and of patches that are zero."""
    patches_IPE = torch.zeros(shape.images, 4 * shape.side**2, shape.patch_values)
    return _sequence(shape, [2] * shape.text_tokens, patches_IPE)


def _sequence(shape: SequenceShape, ids: list[int], patches_IPE: torch.Tensor) -> PackedSequence:
    starts = shape.document_starts
    mask = torch.zeros(shape.text_tokens, dtype=torch.bool)
    for start, end in pairwise([*starts, shape.text_tokens]):
        mask[start + 1 : end : 2] = True
    return PackedSequence(
        input_ids=ids,
        loss_mask=mask.tolist(),
        document_starts=starts,
        image_positions=shape.image_positions,
        image_tokens=[shape.side**2] * shape.images,
        image_grids=[(2 * shape.side, 2 * shape.side)] * shape.images,
        patches_PE=list(patches_IPE),
    )


def random_batch(
    shape: SequenceShape, sequences: int, vocab_size: int, generator: torch.Generator
) -> MicroBatch:
    """One forward's batch of random sequences."""
    from pipelines.train.loader import Document, MicroBatch  # late: it imports the processor

    packed = [random_sequence(shape, vocab_size, generator) for _ in range(sequences)]
    trained = sum(sum(sequence.loss_mask) for sequence in packed)
    return MicroBatch(collate(packed), (Document("random", "random", trained),))
