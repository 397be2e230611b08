"""Documents as a reader sees them: words and pictures in order. Tests draw them, then lay them out as
batches.

A document is a list of items: a token id (``int``), or the image tokens of one picture (a tensor of shape
(rows, columns, width)). Its last item is a token, because the template always ends so. Its outline says the
same without the contents: 0 for a token, (rows, columns) for a picture, or n > 0 for one of n rows and one
column.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn

from casa_core.batch import PackedSequence

Item = int | torch.Tensor
Document = list[Item]
Outline = Sequence[int | tuple[int, int]]

VOCABULARY = 40
GRIDS = [(1, 1), (1, 3), (2, 2), (3, 2)]


@st.composite
def outlines(draw: st.DrawFn, max_items: int = 12) -> list[int]:
    """The outline of a document: 0 for a token, n > 0 for a picture of n tokens; it ends with a token."""
    return [*draw(st.lists(st.sampled_from([0, 0, 1, 2, 5]), max_size=max_items)), 0]


@st.composite
def packs(draw: st.DrawFn, max_documents: int = 3, max_items: int = 6) -> list[Outline]:
    """Outlines of documents to pack, their pictures of several shapes.

    Drawn by a seed: hypothesis tries what is simplest first, and of lists that would be a single word.
    """
    chance = random.Random(draw(st.integers(0, 2**32)))
    lengths = [chance.randint(0, max_items) for _ in range(chance.randint(1, max_documents))]
    return [[*chance.choices([0, 0, 0, *GRIDS], k=length), 0] for length in lengths]


def grid_of(entry: int | tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of a picture in an outline."""
    return (entry, 1) if isinstance(entry, int) else entry


def document(outline: Outline, width: int, generator: torch.Generator) -> Document:
    """A document of that outline with random token ids and image tokens (float64)."""
    items: Document = []
    for entry in outline:
        if entry:
            items.append(torch.randn(*grid_of(entry), width, generator=generator, dtype=torch.float64))
        else:
            items.append(int(torch.randint(1, VOCABULARY, (), generator=generator)))  # 0 is padding
    return items


@dataclass(frozen=True, slots=True)
class Layout:
    """Documents one after the other, as positions: what ``window_layout`` takes."""

    text_length: int
    document_starts: list[int]
    image_positions: list[int]
    image_tokens: list[int]
    image_grids: list[tuple[int, int]]


def lay_out(outlines: Sequence[Outline]) -> Layout:
    """Positions of the items of some outlines."""
    length, starts, positions, grids = 0, [], [], []
    for outline in outlines:
        starts.append(length)
        for entry in outline:
            if entry:
                positions.append(length)
                grids.append(grid_of(entry))
            else:
                length += 1
    return Layout(length, starts, positions, [rows * columns for rows, columns in grids], grids)


def ids_of(items: Document) -> list[int]:
    """The token ids of a document."""
    return [item for item in items if isinstance(item, int)]


def images_of(items: Document) -> list[torch.Tensor]:
    """The pictures of a document."""
    return [item for item in items if isinstance(item, torch.Tensor)]


def outline_of(items: Document) -> Outline:
    """The outline of a document."""
    return [0 if isinstance(item, int) else (item.shape[0], item.shape[1]) for item in items]


def sequence(
    documents: Sequence[Document], loss_mask: Sequence[bool] | None = None, dtype: torch.dtype = torch.float64
) -> PackedSequence:
    """One packed sequence of these documents; its "patches" are the image tokens (see
    :class:`GivenTokens`)."""
    layout = lay_out([outline_of(items) for items in documents])
    images = [image for items in documents for image in images_of(items)]
    ids = [token for items in documents for token in ids_of(items)]
    return PackedSequence(
        input_ids=ids,
        loss_mask=loss_mask or [False] * len(ids),
        document_starts=layout.document_starts,
        image_positions=layout.image_positions,
        image_tokens=layout.image_tokens,
        image_grids=layout.image_grids,
        patches_PE=[image.to(dtype).flatten(0, 1) for image in images],
    )


class GivenTokens(nn.Module):
    """In the place of a vision tower: the patches are the image tokens already (patches are not merged)."""

    def forward(self, patches_PE: torch.Tensor, grids: Sequence[tuple[int, int]]) -> torch.Tensor:
        return patches_PE
