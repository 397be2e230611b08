"""Operations of a training step, from the architecture.

Matrix products, two operations a multiply-add, and the pairs of tokens that attend to each other (of a causal
square, half). Backward costs as much again for gradients of inputs, and once more for those of weights that
train. torch's own counter agrees within 5 % where it counts: not inside attention.
"""

from __future__ import annotations

from casa_core.config import CasaConfig, TinyVisionConfig
from casa_core.trainability import TrainingStage
from pipelines.train.synthetic import SequenceShape


def step_flops(config: CasaConfig, stage: TrainingStage, shape: SequenceShape) -> float:
    """Of forward and backward over one packed sequence; what checkpointing does again is not counted.

    Args:
        config: The model.
        stage: What trains.
        shape: The sequence.
    """
    text, fusion = config.text_config, config.fusion_settings
    layers, width, ffn = text.num_hidden_layers, text.hidden_size, text.intermediate_size
    head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    queries, keys = head * text.num_attention_heads, head * text.num_key_value_heads
    tokens, images = float(shape.text_tokens), float(shape.image_tokens)
    fused = 0 if fusion.inserts else len(fusion.layer_indices(layers))
    replaced = fused if fusion.placement == "replace" and fusion.kind == "casa" else 0
    if fusion.inserts:
        tokens += images if fusion.kind == "insertion" else shape.images * fusion.qformer_queries
    each = tokens / shape.documents
    window = shape.text_tokens / shape.images
    projections = width * (2 * queries + 2 * keys)
    forward = 0.0
    # Self-attention and feed-forward of every token in the text; causal pairs of its document.
    forward += 2 * tokens * (projections * (layers - replaced) + 3 * width * ffn * layers)
    forward += 2 * tokens * each * queries * (layers - replaced)
    # Fusion layers: queries of text, keys and values of images (and, in CASA, of the window's text).
    if fused:
        seen = shape.side**2 + (window / 2 if fusion.kind == "casa" else 0)
        own = 2 * keys * width
        forward += (
            2 * fused * shape.text_tokens * (projections if fusion.kind == "casa" else projections - own)
        )
        forward += 2 * fused * images * own
        forward += 4 * fused * shape.text_tokens * seen * queries
        if fusion.image_ffn:
            forward += 2 * fused * images * 3 * width * ffn
    forward += 2 * shape.trained_tokens * width * text.vocab_size
    language = forward * (3 if stage.language_model else 2)
    return language + _tower(config, stage, shape)


def _tower(config: CasaConfig, stage: TrainingStage, shape: SequenceShape) -> float:
    tower, patches = config.vision_config, 4.0 * shape.image_tokens
    width, ffn = tower.hidden_size, tower.intermediate_size
    matrices = 2 if isinstance(tower, TinyVisionConfig) else 3
    image = patches / shape.images
    block = 2 * patches * (4 * width * width + matrices * width * ffn)
    if isinstance(tower, TinyVisionConfig):
        attended = image * tower.depth
    else:
        full = len(tower.fullatt_block_indexes)
        side = tower.window_size // tower.patch_size
        attended = image * full + min(image, side**2) * (tower.depth - full)
    pairs = 4 * patches * width * attended / tower.depth
    trained = tower.depth if stage.vision_blocks == "all" else stage.vision_blocks
    merged = 4 * width
    merger = 2 * shape.image_tokens * merged * (merged + config.text_config.hidden_size)
    passes = tower.depth + 2 * trained
    return (block + pairs) * passes + merger * (2 if trained else 1)
