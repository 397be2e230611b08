"""Small models in folders of the layouts that the large ones are published in, written by transformers'
classes and by hand where its layout has moved on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    HeliumConfig,
    HeliumForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from casa_core.batch import PackedSequence, collate
from casa_core.model import CasaForConditionalGeneration

VOCABULARY, WIDTH, PATCH_VALUES = 60, 32, 3 * 2 * 14 * 14
PLACEHOLDER = 59
PROMPT = [5, 9, 33, 2, 41, 7, 7, 18]
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 500.0}


def helium(tied: bool = False, **changes: Any) -> HeliumForCausalLM:
    settings = {**SIZES, "head_dim": 8, "rope_parameters": ROPE, "tie_word_embeddings": tied, **changes}
    return randomised(HeliumForCausalLM(HeliumConfig(**settings)))


def llama(tied: bool = False, **changes: Any) -> LlamaForCausalLM:
    """What ``kyutai/helium-1-2b`` is published as."""
    settings = {**SIZES, "rope_parameters": ROPE, "tie_word_embeddings": tied, **changes}
    return randomised(LlamaForCausalLM(LlamaConfig(**settings)))


def qwen(
    tied: bool = True, out_hidden_size: int = WIDTH, **changes: Any
) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL with three tower blocks; the 3B's head is tied."""
    vision = {
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": out_hidden_size,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.1,
    }
    rope = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 2]}
    text = {**SIZES, "rope_parameters": rope, **changes}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=PLACEHOLDER,
        vision_start_token_id=57,
        vision_end_token_id=58,
        video_token_id=56,
        tie_word_embeddings=tied,
    )
    return randomised(Qwen2_5_VLForConditionalGeneration(config))


def randomised(model: Any) -> Any:
    """Norms and biases too: one that is left out, or goes elsewhere, would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_q" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def published(folder: Path, model: PreTrainedModel, shards: int = 3) -> Path:
    """As transformers writes it today: config.json, shards, their index."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    return with_weights(folder, stored(model), shards)


def published_as_released(folder: Path, model: Qwen2_5_VLForConditionalGeneration, shards: int = 3) -> Path:
    """As Qwen2.5-VL lies on the hub: a flat config.json, and ``visual.`` beside ``model.``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    text, vision = config.pop("text_config"), config.pop("vision_config")
    rope = text.pop("rope_parameters")
    flat = {
        **text,
        **{key: config[key] for key in ("tie_word_embeddings", "image_token_id", "vision_start_token_id")},
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "vision_config": {key: value for key, value in vision.items() if key != "model_type"}
        | {"in_chans": 3},
    }
    for key in ("layer_types", "transformers_version", "dtype"):
        flat.pop(key, None)
    (folder / "config.json").write_text(json.dumps(flat))
    names = {
        name: name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        for name in stored(model)
    }
    return with_weights(folder, {names[name]: value for name, value in stored(model).items()}, shards)


def stored(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights by the names of the class, a tied head once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def with_weights(folder: Path, weights: Mapping[str, torch.Tensor], shards: int = 3) -> Path:
    """Write weights as the hub has them: shards with an index, or one file."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata)
        return folder
    files: dict[str, dict[str, torch.Tensor]] = {}
    for number, (name, value) in enumerate(weights.items()):
        files.setdefault(f"model-{number % shards + 1:05}-of-{shards:05}.safetensors", {})[name] = value
    for file, content in files.items():
        save_file(content, folder / file, metadata)
    index = {
        "metadata": {},
        "weight_map": {name: file for file, content in files.items() for name in content},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def rewrite_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def text_logits(model: CasaForConditionalGeneration, ids: list[int]) -> torch.Tensor:
    """(text tokens, vocabulary) of a text without pictures."""
    return seen_logits(model, ids, [], [])


def seen_logits(
    model: CasaForConditionalGeneration,
    ids: list[int],
    positions: list[int],
    patches: list[torch.Tensor],
    grid: tuple[int, int] = (4, 4),
) -> torch.Tensor:
    """(text tokens, vocabulary) of a text with pictures of one size, each before a token."""
    sequence = PackedSequence(
        input_ids=ids,
        loss_mask=[False] * len(ids),
        document_starts=[0],
        image_positions=positions,
        image_tokens=[grid[0] * grid[1] // 4] * len(positions),
        image_grids=[grid] * len(positions),
        patches_PE=patches,
    )
    inputs: dict[str, Any] = {**collate([sequence]).inputs(), "loss_mask": None}
    return model(**inputs).logits[0]


def picture(seed: int = 0, grid: tuple[int, int] = (4, 4)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(grid[0] * grid[1], PATCH_VALUES, generator=generator)
