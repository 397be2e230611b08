"""Documents as a reader sees them: words and pictures in order. Tests draw them, then lay them out as
batches.

A document is a list of items: a token id (``int``), or the image tokens of one picture (a tensor of shape
(tokens, width)). Its last item is a token, because the template always ends so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn

from casa_core.batch import PackedSequence

Item = int | torch.Tensor
Document = list[Item]

VOCABULARY = 40


@st.composite
def outlines(draw: st.DrawFn, max_items: int = 12) -> list[int]:
    """The outline of a document: 0 for a token, n > 0 for a picture of n tokens; it ends with a token."""
    return [*draw(st.lists(st.sampled_from([0, 0, 1, 2, 5]), max_size=max_items)), 0]


def document(outline: Sequence[int], width: int, generator: torch.Generator) -> Document:
    """A document of that outline with random token ids and image tokens (float64)."""
    items: Document = []
    for tokens in outline:
        if tokens:
            items.append(torch.randn(tokens, width, generator=generator, dtype=torch.float64))
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


def lay_out(outlines: Sequence[Sequence[int]]) -> Layout:
    """Positions of the items of some outlines."""
    length, starts, positions, sizes = 0, [], [], []
    for outline in outlines:
        starts.append(length)
        for tokens in outline:
            if tokens:
                positions.append(length)
                sizes.append(tokens)
            else:
                length += 1
    return Layout(length, starts, positions, sizes)


def outline_of(items: Document) -> list[int]:
    """The outline of a document."""
    return [0 if isinstance(item, int) else len(item) for item in items]


def sequence(
    documents: Sequence[Document], loss_mask: Sequence[bool] | None = None, dtype: torch.dtype = torch.float64
) -> PackedSequence:
    """One packed sequence of these documents; its "patches" are the image tokens (see
    :class:`GivenTokens`)."""
    layout = lay_out([outline_of(items) for items in documents])
    images = [item for items in documents for item in items if not isinstance(item, int)]
    ids = [item for items in documents for item in items if isinstance(item, int)]
    return PackedSequence(
        input_ids=ids,
        loss_mask=loss_mask or [False] * len(ids),
        document_starts=layout.document_starts,
        image_positions=layout.image_positions,
        image_tokens=layout.image_tokens,
        image_grids=[(tokens, 1) for tokens in layout.image_tokens],
        patches_PE=[image.to(dtype) for image in images],
    )


class GivenTokens(nn.Module):
    """In the place of a vision tower: the patches are the image tokens already."""

    def forward(self, patches_PE: torch.Tensor, grids: Sequence[tuple[int, int]]) -> torch.Tensor:
        return patches_PE
