"""Floating-point operations of a training step, from the architecture.

Matrix products, two operations per multiply-add, and the pairs of tokens that attend to each other (half of a
causal square). Backward costs as much again for gradients of inputs, and once more for those of weights that
train. torch's own counter agrees within 5 % where it counts: not inside attention.

Shape suffixes: D documents, I images, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casa_core.batch import PackedBatch
from casa_core.config import CasaConfig, TinyVisionConfig, TrainingStage
from casa_core.fusion.config import FusionConfig
from casa_core.inputs import Packing

IntArray = NDArray[np.int64]
_FROZEN = TrainingStage(language_model=False, vision_blocks=0)


@dataclass(frozen=True, slots=True)
class Load:
    """The counts of packed sequences that a step's operations follow from.

    Attributes:
        text_D, images_D, image_tokens_D: Text tokens, images and their tokens in each document.
        text_W, image_tokens_W: Text tokens of each window, and the image tokens that they see.
        patches_I: Patches of each image.
        trained_tokens: Answer tokens, which alone reach the vocabulary.
    """

    text_D: IntArray
    images_D: IntArray
    image_tokens_D: IntArray
    text_W: IntArray
    image_tokens_W: IntArray
    patches_I: IntArray
    trained_tokens: int

    @classmethod
    def of(cls, packing: Packing, text_tokens: int, trained_tokens: int, patches: Sequence[int]) -> Load:
        """The load of packed documents: ``text_tokens`` in all, ``patches`` of each image."""
        starts, positions = np.asarray(packing.document_starts), np.asarray(packing.image_positions, int)
        tokens = np.asarray(packing.image_tokens, int)
        document_I = np.searchsorted(starts, positions, side="right") - 1
        # A window ends where a document or the next image begins; images at one position share one.
        bounds = np.union1d(starts, positions)
        window_I = np.searchsorted(bounds, positions)
        return cls(
            text_D=np.diff(starts, append=text_tokens),
            images_D=np.bincount(document_I, minlength=len(starts)),
            image_tokens_D=np.bincount(document_I, tokens, len(starts)).astype(int),
            text_W=np.diff(bounds, append=text_tokens),
            image_tokens_W=np.bincount(window_I, tokens, len(bounds)).astype(int),
            patches_I=np.asarray(patches, int),
            trained_tokens=trained_tokens,
        )

    @classmethod
    def of_batch(cls, batch: PackedBatch) -> Load:
        """The load of one forward."""
        patches = [rows * columns for rows, columns in batch.images.grids] if batch.images else []
        return cls.of(batch.packing, batch.text_tokens, batch.trained_tokens, patches)


def step_flops(config: CasaConfig, stage: TrainingStage, load: Load) -> float:
    """Operations of forward and backward; recomputation by checkpointing is not counted."""
    language = _language(config, load) * (3 if stage.language_model else 2)
    return language + _tower(config, stage, load)


def forward_flops(config: CasaConfig, load: Load) -> float:
    """Operations of a forward alone."""
    return _language(config, load) + _tower(config, _FROZEN, load)


def _language(config: CasaConfig, load: Load) -> float:
    """Operations of the language model's forward, fusion layers included."""
    text, fusion = config.text_config, config.fusion_settings
    layers, width, ffn = text.num_hidden_layers, text.hidden_size, text.intermediate_size
    head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    queries, keys = head * text.num_attention_heads, head * text.num_key_value_heads
    fused = 0 if fusion.inserts else len(fusion.layer_indices(layers))
    replaced = fused if fusion.placement == "replace" and fusion.kind == "casa" else 0
    stream_D = load.text_D + _inserted(fusion, load)
    tokens, causal_pairs = float(stream_D.sum()), float((stream_D**2).sum()) / 2
    projections = width * (2 * queries + 2 * keys)
    # Self-attention and feed-forward of every token in the text; causal pairs of its document.
    forward = 2 * tokens * (projections * (layers - replaced) + 3 * width * ffn * layers)
    forward += 4 * causal_pairs * queries * (layers - replaced)
    if fused:
        forward += fused * _fusion_layer(fusion, load, width, ffn, queries, keys)
    return forward + 2 * load.trained_tokens * width * text.vocab_size


def _inserted(fusion: FusionConfig, load: Load) -> IntArray | int:
    """Tokens that images add to each document's text."""
    if fusion.kind == "insertion":
        return load.image_tokens_D
    return load.images_D * fusion.qformer_queries if fusion.kind == "qformer" else 0


def _fusion_layer(fusion: FusionConfig, load: Load, width: int, ffn: int, queries: int, keys: int) -> float:
    """Queries of text; keys and values of images and, in CASA, of the window's text; the pairs they make."""
    text, images = float(load.text_W.sum()), float(load.image_tokens_D.sum())
    image_side = 2 * keys * width  # keys and values of a token
    text_side = 2 * queries * width + (image_side if fusion.kind == "casa" else 0)
    pairs = float((load.text_W * load.image_tokens_W).sum())
    if fusion.kind == "casa":
        pairs += float((load.text_W**2).sum()) / 2
    through_ffn = images * 3 * width * ffn if fusion.image_ffn else 0.0
    return 2 * (text * text_side + images * image_side + through_ffn) + 4 * pairs * queries


def _tower(config: CasaConfig, stage: TrainingStage, load: Load) -> float:
    tower, patches = config.vision_config, float(load.patches_I.sum())
    width, ffn = tower.hidden_size, tower.intermediate_size
    matrices = 2 if isinstance(tower, TinyVisionConfig) else 3
    block = 2 * patches * (4 * width * width + matrices * width * ffn)
    full_pairs = float((load.patches_I**2).sum())
    if isinstance(tower, TinyVisionConfig):
        pairs = full_pairs
    else:
        full = len(tower.fullatt_block_indexes)
        window = (tower.window_size // tower.patch_size) ** 2
        windowed = float((load.patches_I * np.minimum(load.patches_I, window)).sum())
        pairs = (full_pairs * full + windowed * (tower.depth - full)) / tower.depth
    trained = tower.depth if stage.vision_blocks == "all" else stage.vision_blocks
    merged = 4 * width
    image_tokens = float(load.image_tokens_D.sum())
    merger = 2 * image_tokens * merged * (merged + config.text_config.hidden_size)
    passes = tower.depth + 2 * trained
    return (block + 4 * pairs * width) * passes + merger * (2 if trained else 1)
