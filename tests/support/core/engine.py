"""Watching and steering a model from outside, to see what the engine runs through it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from casa_core.batch import PackedSequence, collate
from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.engine.slot_pool import Chosen, SlotPool
from casa_core.model import CasaForConditionalGeneration
from tests.support.data.media import encode


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Random pixels; the same for the same seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(seed: int, height: int = 48, width: int = 64) -> bytes:
    """The same picture as a file."""
    return encode(Image.fromarray(picture(seed, height, width)), "PNG")


@torch.inference_mode()
def full_logits(model: CasaForConditionalGeneration, whole: TokenChunk) -> torch.Tensor:
    """(text tokens, vocabulary) of a whole conversation in one forward, as training runs it: no cache."""
    sequence = PackedSequence(
        input_ids=whole.ids,
        loss_mask=[False] * len(whole.ids),
        document_starts=[0],
        image_positions=whole.image_positions,
        image_tokens=whole.image_tokens,
        image_grids=whole.grids,
        patches_PE=whole.patches_PE,
    )
    inputs: dict[str, Any] = {**collate([sequence]).inputs(), "loss_mask": None}
    return model(**inputs).logits[0]


def pieces(whole: TokenChunk, cuts: Sequence[int]) -> list[TokenChunk]:
    """A conversation cut before the tokens of these numbers."""
    out = []
    for start, end in zip([0, *cuts], [*cuts, len(whole.ids)], strict=True):
        own = [n for n, position in enumerate(whole.image_positions) if start <= position < end]
        out.append(
            TokenChunk(
                whole.ids[start:end],
                [whole.image_positions[n] - start for n in own],
                [whole.patches_PE[n] for n in own],
                [whole.grids[n] for n in own],
                [whole.image_tokens[n] for n in own],
            )
        )
    return out


@dataclass(slots=True)
class Tape:
    """What went through a model: one sequence's token ids, and the logits after each forward's last one."""

    ids: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


Extend = Callable[[KVBatch, Sequence[TokenChunk | None]], torch.Tensor]


@contextmanager
def replaced(around: Callable[[Extend], Extend], model: CasaForConditionalGeneration) -> Iterator[None]:
    """Have ``around`` the extensions of a model's sequences, by whichever forward they run."""
    original = KVBatch.extend
    changed = around(original)

    def extend(batch: KVBatch, rows: Sequence[TokenChunk | None]) -> torch.Tensor:
        return (changed if batch.model is model else original)(batch, rows)

    with patch.object(KVBatch, "extend", extend):
        yield


@contextmanager
def recorded(model: CasaForConditionalGeneration) -> Iterator[Tape]:
    """Write down every forward of a model that runs one sequence."""
    tape = Tape()

    def write(run: Extend) -> Extend:
        def extend(batch: KVBatch, rows: Sequence[TokenChunk | None]) -> torch.Tensor:
            logits_AV = run(batch, rows)
            tape.ids += next(row.ids for row in rows if row is not None)
            tape.ends.append(len(tape.ids))
            tape.logits.append(logits_AV[0].clone())
            return logits_AV

        return extend

    with replaced(write, model):
        yield tape


@contextmanager
def saying(model: CasaForConditionalGeneration, tokens: Sequence[int]) -> Iterator[None]:
    """Make a model say these tokens, one a forward, whatever it would have said."""
    script, original = iter(tokens), SlotPool.run

    def run(
        pool: SlotPool, chunks: Mapping[int, TokenChunk], choose: Collection[int] | None = None
    ) -> Chosen:
        chosen = original(pool, chunks, choose)
        if pool.model is model and chosen.tokens:
            return chosen._replace(tokens=dict.fromkeys(chosen.tokens, next(script)))
        return chosen

    with patch.object(SlotPool, "run", run):
        yield
