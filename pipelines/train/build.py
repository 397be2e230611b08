"""Builds the model that training starts from: at random, from published weights or from a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from casa_core.errors import ConfigError
from casa_core.fusion.config import FusionConfig, fusion_config
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor
from casa_core.weights.checkpoint import load_checkpoint
from casa_core.weights.from_backbone import from_backbone
from pipelines.recipe.model import TrainedModel
from pipelines.train.model_config import model_config


def build_model(
    model: TrainedModel,
    processor: CasaProcessor,
    *,
    seed: int,
    images: bool = True,
    start: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    text_frozen: bool = False,
) -> CasaForConditionalGeneration:
    """The model before its first step, in training mode; the same on every worker.

    Args:
        model: The recipe's backbone, fusion and weights.
        processor: The packed data's.
        seed: Seed of weights that start at random.
        images: ``False``: the blind baseline.
        start: Checkpoint folder of a fused model to start from.
        dtype: The weights' dtype, which forwards compute in; float32 master weights are made from these.
        text_frozen: Training leaves the language model as it is.

    Raises:
        ConfigError: If a backbone has no weights, the checkpoint holds another model, or a frozen language
            model lacks tokens of the processor's.
    """
    torch.manual_seed(seed)
    weights, fusion = model.weights, fusion_config(model.fusion.model_dump())
    if start is not None:
        built = _from_checkpoint(Path(start), model.backbone, fusion, processor)
    elif weights is not None and weights.language_model:
        built, _ = from_backbone(
            weights.language_model,
            vision=weights.vision_tower,
            fusion=fusion,
            dtype=dtype,
            revision=weights.revision,
            vision_revision=weights.vision_revision,
        )
        _check_family(built, model.backbone, weights.language_model)
    elif model.backbone == "tiny":
        built = _at_random(model, processor)
    else:
        raise ConfigError(
            f"`model.backbone = {model.backbone}` has no weights to start from.",
            "A backbone of this size is not trained from random weights here.",
            "Name them in `model.weights`: language_model (and vision_tower), checkpoint, or a recipe.",
        )
    nn.Module.to(built, dtype)  # in place
    added = grow_vocabulary(built, len(processor.tokenizer))
    if added and text_frozen:
        raise ConfigError(
            f"The frozen language model lacks {added} tokens of the chat template.",
            "Their vocabulary rows would stay as they start, all alike: no turn differs from another.",
            "Train the language model (train.trains.language_model=true), or take a tokenizer and weights "
            "that have the template's tokens.",
        )
    built.config.images_withheld = not images
    return built.train()


def _at_random(model: TrainedModel, processor: CasaProcessor) -> CasaForConditionalGeneration:
    config = model_config(
        model,
        vocab_size=len(processor.tokenizer),
        pad_token_id=processor.tokenizer.pad_token_id,
        eos_token_id=processor.end_id,
    )
    built = CasaForConditionalGeneration(config)
    built.initialize_fusion()
    # A word must weigh as much as what attention adds to it. At the other weights' scale it is a tenth of
    # that, and whether the picture shows what a word names is not learned in a thousand steps. A word is also
    # read and written in one direction: what the picture is learned to be called then meets what is asked.
    table, head = built.get_input_embeddings().weight, built.get_output_embeddings().weight
    assert isinstance(table, torch.Tensor)
    assert isinstance(head, torch.Tensor)
    nn.init.normal_(table)
    with torch.no_grad():
        head.copy_(table * config.text_config.initializer_range)
    return built


def _from_checkpoint(
    folder: Path, backbone: str, fusion: FusionConfig, processor: CasaProcessor
) -> CasaForConditionalGeneration:
    built, saved = load_checkpoint(folder)
    _check_family(built, backbone, str(folder))
    theirs, ours = (
        {name: value for name, value in dataclasses.asdict(settings).items() if name != "init"}
        for settings in (built.config.fusion_settings, fusion)
    )
    if theirs != ours:
        differing = next(name for name in ours if theirs[name] != ours[name])
        raise ConfigError(
            f"The checkpoint {folder} has another fusion than this recipe.",
            f"Its {differing} is {theirs[differing]!r}, model.fusion.{differing} is {ours[differing]!r}.",
            "Use the fusion that the checkpoint was trained with.",
        )
    if saved.tokenizer.get_vocab() != processor.tokenizer.get_vocab():
        raise ConfigError(
            f"The checkpoint {folder} has another tokenizer than the packed data.",
            f"They have {len(saved.tokenizer)} and {len(processor.tokenizer)} tokens.",
            f"Set `model.tokenizer.path` to {folder}, so that the data is packed with its tokenizer.",
        )
    return built


def _check_family(model: CasaForConditionalGeneration, backbone: str, source: str) -> None:
    kind = model.config.text_config.model_type
    tower = model.config.vision_config.model_type
    found = {
        ("helium", "casa_tiny_vision"): "tiny",
        ("helium", "qwen2_5_vl_vision"): "helium",
        ("qwen2_5_vl_text", "qwen2_5_vl_vision"): "qwen2_5_vl",
    }.get((kind, tower))
    if found != backbone:
        raise ConfigError(
            f"{source} is no {backbone} model.",
            f"Its language model is of type {kind}, its vision tower of type {tower}.",
            f"Set model.backbone to {found}." if found else "Name weights of the recipe's backbone.",
        )


def grow_vocabulary(model: CasaForConditionalGeneration, size: int) -> int:
    """Add tokens that a published tokenizer lacks (the chat template's), each starting as the mean of the
    existing ones; returns how many. A vocabulary that is large enough stays as it is."""
    before = model.config.text_config.vocab_size
    if size <= before:
        return 0
    model.resize_token_embeddings(size, mean_resizing=False)
    model.config.text_config.vocab_size = size
    with torch.no_grad():
        for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            assert isinstance(table, torch.Tensor)
            table[before:] = table[:before].mean(dim=0)
    return size - before
