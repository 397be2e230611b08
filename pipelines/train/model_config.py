"""A recipe's model and stage of training as settings: sizes, fusion, what trains. Imports no model."""

from __future__ import annotations

from typing import Any, Literal

from casa_core.backbones import published
from casa_core.config import CasaConfig, TrainingStage
from casa_core.fusion.config import fusion_config
from pipelines.recipe.model import Train, TrainedModel

Scale = Literal["full", "small"]


def training_stage(train: Train) -> TrainingStage:
    """Which parameters the recipe's ``train`` section trains, and their peak learning rates."""
    new, existing = train.learning_rate, train.existing_learning_rate
    return TrainingStage(
        **train.trains.model_dump(),
        new_learning_rate=new,
        existing_learning_rate=new if existing is None else existing,
    )


def model_config(
    model: TrainedModel,
    *,
    vocab_size: int,
    pad_token_id: int,
    eos_token_id: int,
    images_withheld: bool = False,
    scale: Scale = "full",
) -> CasaConfig:
    """The configuration of the recipe's model; a published backbone's sizes are the published ones.

    Args:
        model: Its ``backbone`` and ``fusion`` are read.
        vocab_size: Tokens of the tokenizer. A published vocabulary that is smaller grows to it.
        pad_token_id, eos_token_id: Ids of the tokenizer's padding and end tokens.
        images_withheld: ``True`` for the blind baseline.
        scale: ``small``: the same layers at a width that two CPU cores can train, and as few of them as have
            every mechanism: two rounds of "every fourth layer", four frozen and four trainable blocks.
    """
    fusion = fusion_config(model.fusion.model_dump())
    if model.backbone == "tiny":
        from casa_core.backbones.tiny import tiny_config  # late: it holds the modules too

        return tiny_config(
            vocab_size=vocab_size,
            pad_token_id=pad_token_id,
            eos_token_id=eos_token_id,
            fusion=fusion,
            images_withheld=images_withheld,
        )
    qwen = model.backbone == "qwen2_5_vl"
    text: Any = published.qwen2_5_vl_3b_text() if qwen else published.helium1_2b_text()
    tower: Any = published.qwen2_5_vl_3b_vision()
    if scale == "small":
        _shrink(text, tower)
        text.vocab_size = vocab_size
    text.vocab_size = max(text.vocab_size, vocab_size)
    text.pad_token_id, text.eos_token_id, text.bos_token_id = pad_token_id, eos_token_id, None
    return CasaConfig(text_config=text, vision_config=tower, fusion=fusion, images_withheld=images_withheld)


def _shrink(text: Any, tower: Any) -> None:
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 64, 128, 8
    text.num_attention_heads, text.num_key_value_heads = 4, 2
    text.head_dim = 16
    if "mrope_section" in text.rope_parameters:
        text.rope_parameters["mrope_section"] = [2, 3, 3]
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    tower.hidden_size, tower.intermediate_size, tower.num_heads = 32, 64, 2
    tower.depth, tower.fullatt_block_indexes = 8, [3, 7]
    tower.out_hidden_size = text.hidden_size
