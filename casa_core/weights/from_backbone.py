"""Published backbones → a fused model: the language model's and the vision tower's weights, and new fusion
layers that start from the language model's self-attention (paper, 4.1).

Shape suffixes: R rows of a projection (heads times head size).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig
from transformers.models.helium import HeliumConfig
from transformers.models.llama import LlamaConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)

from casa_core.config import CasaConfig, TextConfig
from casa_core.errors import ConfigError, StoreError
from casa_core.fusion.config import FusionConfig, fusion_config
from casa_core.model import CasaForConditionalGeneration
from casa_core.weights.files import (
    ImportReport,
    Shape,
    TensorCopy,
    WeightFiles,
    build,
    find_file,
    parameter_shapes,
    shape_problems,
)

BACKBONES = (HeliumConfig, LlamaConfig, Qwen2_5_VLConfig, Qwen2_5_VLTextConfig)
TOWERS = (Qwen2_5_VLConfig, Qwen2_5_VLVisionConfig)
# Where releases put a part, newest layout first, and a tensor that every such part has.
TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "model.", "")
TOWER_PREFIXES = ("model.visual.", "visual.", "")
EMBEDDING, PATCHES, HEAD = "embed_tokens.weight", "patch_embed.proj.weight", "lm_head.weight"
BUFFERS = ("rotary_emb.inv_freq",)
"""Tables that older releases stored beside the weights; they follow from the configuration."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A published model: its configuration, and what its files hold.

    Attributes:
        config: As transformers reads it.
        files: Its weights.
    """

    config: Any
    files: WeightFiles

    @classmethod
    def of(cls, source: str | Path, revision: str | None, known: tuple[Any, ...], part: str) -> Backbone:
        """Read a local folder, or a repository on the hub.

        Raises:
            ConfigError: If its type is none of ``known``.
            StoreError: If files are missing.
        """
        return cls(_read_config(source, revision, known, part), WeightFiles.of(source, revision))


def read_text_config(source: str | Path, revision: str | None = None) -> TextConfig:
    """The configuration that :func:`from_backbone` gives a language model, from its ``config.json`` alone.

    Raises:
        ConfigError: If a model of its type or settings is not supported.
        StoreError: If there is no such file.
    """
    return _text_config(_read_config(source, revision, BACKBONES, "language model"), str(source))


def read_tower_config(source: str | Path, revision: str | None = None) -> Qwen2_5_VLVisionConfig:
    """Likewise of a vision tower."""
    return _tower_config(_read_config(source, revision, TOWERS, "vision tower"), str(source))


def _read_config(source: str | Path, revision: str | None, known: tuple[Any, ...], part: str) -> Any:
    path = find_file(source, "config.json", revision)
    model_type = json.loads(path.read_text()).get("model_type")
    if model_type not in {kind.model_type for kind in known}:
        raise ConfigError(
            f"{source} cannot serve as {part}.",
            f"Its type is {model_type!r}; supported: {', '.join(kind.model_type for kind in known)}.",
            "Name a model of one of these types.",
        )
    return AutoConfig.from_pretrained(path.parent)


def from_backbone(
    name_or_path: str | Path,
    *,
    vision: str | Path | None = None,
    fusion: FusionConfig | Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    vision_revision: str | None = None,
) -> tuple[CasaForConditionalGeneration, ImportReport]:
    """A fused model from published weights, in evaluation mode, and where each of them came from.

    Args:
        name_or_path: The language model: a name on the hub (``kyutai/helium-1-2b``,
            ``Qwen/Qwen2.5-VL-3B-Instruct``) or a folder in the hub's layout. Helium, Llama where Helium's
            code computes the same (``kyutai/helium-1-2b`` is published as one), and Qwen2.5-VL.
        vision: The vision tower, found likewise: Qwen2.5-VL's. By default the language model's own.
        fusion: Its settings; CA ⊕ in every layer by default.
        dtype: Type of the weights; as published by default.
        revision, vision_revision: Branch, tag or commit on the hub.

    Returns:
        The model, its fusion layers started as ``fusion.init`` says, and the report.

    Raises:
        ConfigError: If a model is of a type that is not supported, or the two do not fit together.
        StoreError: If files or tensors are missing, or there are tensors that the model does not use.
    """
    text = Backbone.of(name_or_path, revision, BACKBONES, "language model")
    tower = text if vision is None else Backbone.of(vision, vision_revision, TOWERS, "vision tower")
    settings = fusion if isinstance(fusion, FusionConfig) else fusion_config(dict(fusion or {}))
    config = CasaConfig(
        text_config=_text_config(text.config, str(name_or_path)),
        vision_config=_tower_config(tower.config, str(name_or_path)),
        fusion=settings,
    )
    expected = parameter_shapes(config)
    copies, left_over = _plan(text, tower, config, expected)
    problems = shape_problems(copies, expected)
    if problems:
        raise StoreError(
            f"The weights of {name_or_path} do not fit its configuration.",
            "; ".join(problems[:3]),
            "Use config.json and weights of one release.",
        )
    model = build(config, copies, dtype or copies[0].value().dtype)
    new = expected.keys() - {copy.target for copy in copies}
    return model, ImportReport(
        tuple(copies), tuple(name for name in expected if name in new), tuple(left_over)
    )


def _text_config(config: Any, source: str) -> TextConfig:
    """The language model's configuration, as one of the text backbones."""
    text: Any
    if isinstance(config, Qwen2_5_VLConfig):
        text = config.text_config
        text.tie_word_embeddings = config.tie_word_embeddings
    elif isinstance(config, LlamaConfig):
        text = _as_helium(config, source)
    else:
        text = config
    kind = text.rope_parameters["rope_type"]
    if kind != "default":
        raise ConfigError(
            f"{source} scales its RoPE ({kind!r}).",
            "Fusion layers place image tokens by the backbone's plain RoPE only.",
            "Use a release without rope_scaling.",
        )
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        raise ConfigError(
            f"{source} uses sliding-window self-attention.",
            "Text attends to its whole document here.",
            "Set use_sliding_window to false in its config.json, if it was trained so.",
        )
    return text


def _as_helium(config: LlamaConfig, source: str) -> HeliumConfig:
    """The same model in Helium's code: equal but for which pairs of a head RoPE turns."""
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    if config.attention_bias or head_dim * config.num_attention_heads != config.hidden_size:
        raise ConfigError(
            f"{source} is a Llama that Helium's code cannot run.",
            "Its attention has biases, or heads that do not add up to its width.",
            "Use a release without either.",
        )
    same = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "hidden_act max_position_embeddings initializer_range rms_norm_eps tie_word_embeddings mlp_bias "
        "rope_parameters attention_dropout pad_token_id bos_token_id eos_token_id"
    )
    return HeliumConfig(head_dim=head_dim, **{name: getattr(config, name) for name in same.split()})


def _tower_config(config: Any, source: str) -> Qwen2_5_VLVisionConfig:
    if isinstance(config, Qwen2_5_VLVisionConfig):
        return config
    if isinstance(config, Qwen2_5_VLConfig):
        return cast(Qwen2_5_VLVisionConfig, config.vision_config)
    raise ConfigError(
        f"{source} has no vision tower of its own.",
        "It is a language model.",
        'Name one: vision="Qwen/Qwen2.5-VL-3B-Instruct".',
    )


def _plan(
    text: Backbone, tower: Backbone, config: CasaConfig, expected: Mapping[str, Shape]
) -> tuple[list[TensorCopy], list[str]]:
    """What is taken from where, and what is left."""
    text_prefix = _prefix(text.files, TEXT_PREFIXES, EMBEDDING, "language model")
    tower_prefix = _prefix(tower.files, TOWER_PREFIXES, PATCHES, "vision tower")
    copies: list[TensorCopy] = []
    for target in expected:
        part, _, name = target.partition(".")
        if target == HEAD:
            copies.append(TensorCopy(target, HEAD, text.files))
        elif part == "language_model" and ".fusion." not in name:
            change = None
            if isinstance(text.config, LlamaConfig) and ".self_attn." in name:
                change = half_split_to_pairs(name, config.text_config)
            copies.append(TensorCopy(target, text_prefix + name, text.files, change))
        elif part == "vision_tower":
            copies.append(TensorCopy(target, tower_prefix + name, tower.files))
    missing = [copy for copy in copies if copy.source not in copy.files.shapes]
    if missing:
        raise StoreError(
            f"{missing[0].files.label} lacks {len(missing)} tensors, {missing[0].source} among them.",
            f"{missing[0].target} has no other source.",
            "Use a whole release; a head that is the embedding needs tie_word_embeddings in config.json.",
        )
    _check_tied_head(text, text_prefix, config)
    return copies, _left_over(text, tower, copies, text_prefix, tower_prefix)


def _prefix(files: WeightFiles, prefixes: tuple[str, ...], anchor: str, part: str) -> str:
    for prefix in prefixes:
        if prefix + anchor in files.shapes:
            return prefix
    raise StoreError(
        f"{files.label} holds no {part}.",
        f"None of its tensors is called {', '.join(prefix + anchor for prefix in prefixes)}.",
        "For a checkpoint with other names use casa_core.weights.importing.",
    )


def _check_tied_head(text: Backbone, prefix: str, config: CasaConfig) -> None:
    """A head that is the embedding may be stored beside it, but not differ from it."""
    if not config.tie_word_embeddings or HEAD not in text.files.shapes:
        return
    if not torch.equal(text.files.read(HEAD), text.files.read(prefix + EMBEDDING)):
        raise StoreError(
            f"{text.files.label} has a head that differs from its embedding.",
            "Its configuration says that they are one (tie_word_embeddings).",
            "Set tie_word_embeddings to false in its config.json.",
        )


def _left_over(
    text: Backbone, tower: Backbone, copies: list[TensorCopy], text_prefix: str, tower_prefix: str
) -> list[str]:
    """Tensors that were not used.

    Raises:
        StoreError: If one lies inside a part that was taken: the model computes something else than ours.
    """
    rest: list[str] = []
    for files in {id(f): f for f in (text.files, tower.files)}.values():
        used = {copy.source for copy in copies if copy.files is files}
        names = [name for name in files.shapes if name not in used and not name.endswith(BUFFERS)]
        inside = [
            name
            for name in names
            if (files is text.files and name.startswith(f"{text_prefix}layers."))
            or (files is tower.files and name.startswith(f"{tower_prefix}blocks."))
        ]
        if inside:
            raise StoreError(
                f"{files.label} has {len(inside)} tensors that have no place here, {inside[0]} among them.",
                "The model they belong to computes something else.",
                "Use a plain release; for fused checkpoints use casa_core.weights.importing.",
            )
        rest += names
    return rest


def half_split_to_pairs(name: str, config: TextConfig) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The change that a tensor ``name`` of self-attention needs where its RoPE turns pair i as rows i and
    i + D/2 of a head (Llama), and ours as rows 2i and 2i + 1 (Helium); ``None`` for values and outputs.
    """
    if name.split(".")[-2] not in ("q_proj", "k_proj"):
        return None
    half = config.head_dim // 2

    def reorder(rows: torch.Tensor) -> torch.Tensor:
        """(R, …) → (R, …)."""
        return rows.unflatten(0, (-1, 2, half)).transpose(1, 2).flatten(0, 2)

    return reorder
