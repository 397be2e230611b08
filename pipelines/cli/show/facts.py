"""A checkpoint described for people: fusion, parameters, vision tower, template, training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from torch import nn

from casa_core.backbones.block import FusedBlock
from casa_core.engine.engine import Engine
from casa_core.fusion.config import FusionConfig
from casa_core.model import CasaForConditionalGeneration
from casa_core.weights.checkpoint import MANIFEST
from pipelines.storage.uri import Folder
from pipelines.text_format import number

KINDS = {
    "cross_attention": "Text attends to the image tokens of its window (cross-attention)",
    "casa": "Text attends to the image tokens and the text of its window (CASA)",
    "insertion": "Image tokens are inserted into the text",
    "qformer": "Image tokens are compressed by a Q-Former and inserted into the text",
}
PLACEMENTS = {
    "parallel": "beside self-attention",
    "before": "before self-attention",
    "after": "after self-attention",
    "replace": "in the place of self-attention",
}
_SHOWN_ELSEWHERE = ("kind", "placement", "layers")
"""Fusion settings that the headline and the layers show."""


def headline(engine: Engine) -> str:
    """The model in one sentence."""
    settings = engine.model.config.fusion_settings
    where = "" if settings.inserts else f", {PLACEMENTS[settings.placement]}"
    blind = " Blind baseline: it is never shown an image." if engine.model.config.images_withheld else ""
    return f"{KINDS[settings.kind]}{where}.{blind}"


def facts(engine: Engine, folder: Folder) -> dict[str, str]:
    """Label → value of a loaded checkpoint, the most important ones first."""
    model, processor = engine.model, engine.processor
    text, vision = model.config.text_config, model.config.vision_config
    settings = model.config.fusion_settings
    size = processor.image_size(processor.max_side, processor.max_side)
    found = {
        "checkpoint": str(folder),
        "fusion": settings.kind if settings.inserts else f"{settings.kind}, {settings.placement}",
        "fused layers": _layers(settings, text.num_hidden_layers),
        "fusion settings": ", ".join(_changed(settings)) or "the defaults",
        "parameters": number(sum(p.numel() for p in model.parameters())),
        "… of them": ", ".join(f"{name} {number(count)}" for name, count in _parts(model)),
        "language model": f"{text.model_type}, {text.num_hidden_layers} layers, {text.hidden_size} wide",
        "attention heads": f"{text.num_attention_heads} ({text.num_key_value_heads} of keys and values)",
        "vision tower": f"{vision.model_type}, {vision.depth} deep",
        "pictures": f"up to {size.height} x {size.width} pixels, {size.tokens} image tokens",
        "chat template": processor.template,
        "context": f"{text.max_position_embeddings:,} text tokens",
        "runs on": f"{model.device}, {str(model.dtype).removeprefix('torch.')}",
    }
    manifest = folder / MANIFEST
    provenance = json.loads(manifest.read_text()).get("provenance") if manifest.is_file() else None
    if provenance:
        shown = (
            f"{name} {value}" for name, value in provenance.items() if isinstance(value, str | int | float)
        )
        found["trained"] = ", ".join(shown)
    return found


def _layers(settings: FusionConfig, count: int) -> str:
    chosen = settings.layer_indices(count)
    if len(chosen) == count:
        return f"all {count}"
    return f"{len(chosen)} of {count}: {', '.join(map(str, chosen))}" if chosen else f"none of {count}"


def _changed(settings: FusionConfig) -> Iterator[str]:
    """Settings that are not the defaults."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in _SHOWN_ELSEWHERE and value != field.default:
            yield f"{field.name} {value}"


def _parts(model: CasaForConditionalGeneration) -> Iterator[tuple[str, int]]:
    """Parameter count of each part; parameters that parts share count once, with the first."""
    fusion = nn.ModuleList(
        layer.fusion for layer in model.language_model.layers if isinstance(layer, FusedBlock)
    )
    seen: set[int] = set()
    parts = {
        "fusion layers": fusion,
        "Q-Former": model.qformer,
        "vision tower": model.vision_tower,
        "language model": model,
    }
    for name, module in parts.items():
        own = [] if module is None else [p for p in module.parameters() if id(p) not in seen]
        seen.update(map(id, own))
        if own:
            yield name, sum(p.numel() for p in own)
