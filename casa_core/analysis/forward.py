"""Whole sequences in one forward, as every analysis here reads them.

A sequence is a :class:`casa_core.decoding.plan.TokenChunk` from a conversation's first token on:
the prompt, as :func:`casa_core.engine.inputs.prompt_chunk` makes it, and usually what the model answered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import torch

from casa_core.decoding.plan import TokenChunk
from casa_core.errors import DataError
from casa_core.inputs import ImageInputs, Packing, merged_grids
from casa_core.model import CasaForConditionalGeneration, CasaOutput
from casa_core.processing.processor import CasaProcessor


def answered(prompt: TokenChunk, answer: Sequence[int]) -> TokenChunk:
    """A prompt and the tokens generated after it, as one sequence."""
    return dataclasses.replace(prompt, ids=[*prompt.ids, *answer])


def delimiter_ids(processor: CasaProcessor) -> frozenset[int]:
    """The tokens that a template puts around an image: Qwen's vision start and end, ``<|image|>``."""
    return frozenset({processor.image_id, *processor.frame_prefix_ids})


def grids_of(model: CasaForConditionalGeneration, sequence: TokenChunk) -> list[tuple[int, int]]:
    """(rows, columns) of image tokens of each image."""
    return merged_grids(sequence.grids, model.config.vision_config.spatial_merge_size)


@torch.inference_mode()
def read_whole(
    model: CasaForConditionalGeneration, sequence: TokenChunk, counted: Collection[int] = ()
) -> CasaOutput:
    """Run a sequence through the model in one forward, without a cache.

    Args:
        model: In evaluation mode.
        sequence: The whole of it.
        counted: Tokens, by index from 1 on, whose summed −log p is wanted as ``loss_sum``; without any, the
            logits after the last token are computed.

    Raises:
        DataError: If a counted token has none before it, or is not part of the sequence.
    """
    length = len(sequence.ids)
    if counted and not (min(counted) > 0 and max(counted) < length):
        raise DataError(
            f"Tokens {min(counted)} to {max(counted)} of a sequence of {length} cannot be counted.",
            "A token is predicted by the one before it.",
            "Name indices from 1 to the sequence's last.",
        )
    device = model.device
    images = None
    if sequence.patches_PE:
        images = ImageInputs(torch.cat([*sequence.patches_PE]).to(device), sequence.grids)
    packing = Packing(
        document_starts=[0],
        image_positions=sequence.image_positions,
        image_tokens=sequence.image_tokens,
        image_grids=grids_of(model, sequence),
    )
    ids_1T = torch.tensor([[*sequence.ids]], device=device)
    if not counted:
        last_1 = torch.tensor([length - 1], device=device)
        return model(ids_1T, packing=packing, images=images, last_tokens=last_1)
    loss_mask_1T = torch.zeros_like(ids_1T, dtype=torch.bool)
    loss_mask_1T[0, [*counted]] = True
    return model(ids_1T, packing=packing, images=images, loss_mask=loss_mask_1T)


def log_likelihood(
    model: CasaForConditionalGeneration, sequence: TokenChunk, counted: Collection[int]
) -> float:
    """Mean log-probability of some tokens of a sequence, each given all before it; nats per token.

    Raises:
        DataError: If there are none, or they are not part of the sequence; see :func:`read_whole`.
    """
    if not counted:
        raise DataError("No tokens are counted.", "A mean needs at least one.", "Name their indices.")
    loss_sum = read_whole(model, sequence, counted).loss_sum
    assert loss_sum is not None
    return -float(loss_sum) / len(counted)
