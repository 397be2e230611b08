"""Rows of tokens and pictures, as a padded batch in transformers' form and one by one in ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from casa_core.batch import PackedSequence, collate
from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.model import CasaForConditionalGeneration
from tests.support.core.family import PAD, VOCABULARY, TowerKind, patch_values

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation: tokens, and before which of them the pictures stand."""

    ids: list[int]
    positions: list[int]
    grids: list[tuple[int, int]]
    patches: list[torch.Tensor]

    @property
    def tokens(self) -> list[int]:
        """Tokens of each picture: 2 by 2 patches make one."""
        return [rows * columns // 4 for rows, columns in self.grids]

    def extension(self) -> TokenChunk:
        return TokenChunk(self.ids, self.positions, self.patches, self.grids, self.tokens)

    def packed(self, trained: Sequence[bool] | None = None) -> PackedSequence:
        return PackedSequence(
            input_ids=self.ids,
            loss_mask=trained or [False] * len(self.ids),
            document_starts=[0],
            image_positions=self.positions,
            image_tokens=self.tokens,
            image_grids=self.grids,
            patches_PE=self.patches,
        )


def row(length: int, images: dict[int, list[tuple[int, int]]], seed: int, tower: TowerKind = "tiny") -> Row:
    """A row of random tokens; ``images``: position → grids of the pictures before that token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
    grids = [grid for position in sorted(images) for grid in images[position]]
    values = patch_values(tower)
    return Row(
        ids,
        [position for position in sorted(images) for _ in images[position]],
        grids,
        [torch.randn(height * width, values, generator=generator) for height, width in grids],
    )


def three_rows(tower: TowerKind = "tiny") -> list[Row]:
    """Rows of different length with one picture, none, and three (two of them at one place)."""
    return [
        row(9, {3: [(2, 4)]}, 1, tower),
        row(5, {}, 2, tower),
        row(12, {0: [(2, 2)], 6: [(4, 2), (2, 6)]}, 3, tower),
    ]


def padded(rows: Sequence[Row], side: Side = "left") -> dict[str, Any]:
    """What the processor would return for these rows."""
    width = max(len(one.ids) for one in rows)
    gaps = [width - len(one.ids) for one in rows]
    fill = lambda values, gap, with_: (  # noqa: E731
        [with_] * gap + values if side == "left" else values + [with_] * gap
    )
    batch = {
        "input_ids": torch.tensor([fill(one.ids, gap, PAD) for one, gap in zip(rows, gaps, strict=True)]),
        "attention_mask": torch.tensor(
            [fill([1] * len(one.ids), gap, 0) for one, gap in zip(rows, gaps, strict=True)]
        ),
    }
    if not any(one.grids for one in rows):
        return batch
    counts = [[one.positions.count(place) for place in range(len(one.ids))] for one in rows]
    return batch | {
        "pixel_values": torch.cat([patches for one in rows for patches in one.patches]),
        "image_grid_thw": torch.tensor([(1, *grid) for one in rows for grid in one.grids]),
        "image_counts": torch.tensor([fill(own, gap, 0) for own, gap in zip(counts, gaps, strict=True)]),
    }


def logits_alone(model: CasaForConditionalGeneration, one: Row) -> torch.Tensor:
    """(L, V) logits of a row by itself, read at once without a cache."""
    return model(**{**collate([one.packed()]).inputs(), "loss_mask": None}).logits[0]


def greedy(model: CasaForConditionalGeneration, one: Row, count: int) -> list[int]:
    """The likeliest continuation of a row by itself, token by token."""
    sequences = KVBatch(model, 1)
    token = int(sequences.extend([one.extension()])[0].argmax())
    tokens = [token]
    while len(tokens) < count:
        token = int(sequences.extend([TokenChunk([token])])[0].argmax())
        tokens.append(token)
    return tokens
