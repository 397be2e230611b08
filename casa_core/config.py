"""Configuration of a fused model (backbone, vision tower, fusion), and what a stage of training trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.helium import HeliumConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)

from casa_core.errors import ConfigError
from casa_core.folder_code import CONFIG_AUTO_MAP, write_code
from casa_core.fusion.config import FusionConfig, fusion_config


class TinyVisionConfig(PreTrainedConfig):
    """A small vision tower with the interface of the large ones: patches in, merged image tokens out.

    Args:
        hidden_size: Width of the tower.
        depth: Number of transformer blocks.
        num_heads: Attention heads.
        intermediate_size: Width of the blocks' MLP.
        patch_size: Side of a patch, pixels; a power of two.
        spatial_merge_size: Side of the square of patches merged into one image token.
        in_channels: 3 for RGB.
    """

    model_type = "casa_tiny_vision"

    def __init__(
        self,
        hidden_size: int = 64,
        depth: int = 1,
        num_heads: int = 4,
        intermediate_size: int = 128,
        patch_size: int = 8,
        spatial_merge_size: int = 2,
        in_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.depth = depth
        self.num_heads = num_heads
        self.intermediate_size = intermediate_size
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        self.in_channels = in_channels
        super().__init__(**kwargs)


TextConfig = HeliumConfig | Qwen2_5_VLTextConfig
VisionConfig = TinyVisionConfig | Qwen2_5_VLVisionConfig
TEXT_CONFIGS: dict[str, type[TextConfig]] = {c.model_type: c for c in (HeliumConfig, Qwen2_5_VLTextConfig)}
VISION_CONFIGS: dict[str, type[VisionConfig]] = {
    c.model_type: c for c in (TinyVisionConfig, Qwen2_5_VLVisionConfig)
}


class CasaConfig(PreTrainedConfig):
    """Configuration of :class:`casa_core.model.CasaForConditionalGeneration`.

    Args:
        text_config: The language model's own configuration: ``helium`` (the default) or ``qwen2_5_vl_text``.
        vision_config: The vision tower's: ``casa_tiny_vision`` (the default) or ``qwen2_5_vl_vision``.
        fusion: Fields of :class:`FusionConfig`.
        images_withheld: True for the blind baseline: a model trained with every image left out.
    """

    model_type = "casa"
    sub_configs = {  # noqa: RUF012 (transformers' contract)  # pyright: ignore
        "text_config": AutoConfig,
        "vision_config": AutoConfig,
    }

    def __init__(
        self,
        text_config: dict[str, Any] | TextConfig | None = None,
        vision_config: dict[str, Any] | VisionConfig | None = None,
        fusion: dict[str, Any] | FusionConfig | None = None,
        images_withheld: bool = False,
        **kwargs: Any,
    ) -> None:
        self.text_config = _sub_config("text_config", text_config, TEXT_CONFIGS, HeliumConfig)
        self.vision_config = _sub_config("vision_config", vision_config, VISION_CONFIGS, TinyVisionConfig)
        fields = dataclasses.asdict(fusion) if isinstance(fusion, FusionConfig) else dict(fusion or {})
        self.fusion = dataclasses.asdict(fusion_config(fields))
        self.images_withheld = images_withheld
        kwargs.pop("auto_map", None)  # only the file has it: no part of what the model is
        kwargs.setdefault("tie_word_embeddings", getattr(self.text_config, "tie_word_embeddings", False))
        super().__init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Does nothing: a checkpoint folder imports this package, instead of holding a copy of a module."""

    def to_diff_dict(self) -> dict[str, Any]:
        """What ``config.json`` holds: the settings, and where transformers finds the classes."""
        return {**super().to_diff_dict(), "auto_map": dict(CONFIG_AUTO_MAP)}

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write ``config.json``, and the module by which transformers finds the classes."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_code(save_directory)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def position_axes(self) -> int:
        """Position axes of the backbone's RoPE: 3 (time, row, column) for Qwen2.5-VL, otherwise 1."""
        return 3 if self.text_config.model_type == "qwen2_5_vl_text" else 1

    @property
    def fusion_settings(self) -> FusionConfig:
        """The fusion, typed (transformers uses the name ``fusion_config`` itself)."""
        return fusion_config(self.fusion)


def _sub_config(name: str, value: Any, known: dict[str, Any], default: type[PreTrainedConfig]) -> Any:
    """A part's configuration from its fields, by their ``model_type``."""
    if value is None:
        return default()
    if not isinstance(value, dict):
        model_type = value.model_type
        if model_type in known:
            return value
    else:
        model_type = value.get("model_type", default.model_type)
        if model_type in known:
            return known[model_type](**value)
    raise ConfigError(
        f"`{name}` is of type {model_type!r}.",
        f"Supported types: {', '.join(sorted(known))}.",
        f"Use one of them as {name}.",
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStage:
    """What a stage of training trains.

    Attributes:
        language_model: Train the whole language model, embeddings and head included.
        vision_blocks: Train so many of the vision tower's last blocks; ``"all"``: the whole tower.
        fusion: Train what the fusion added: its layers' own projections, norms and gates, or the Q-Former.
        new_learning_rate: For what the fusion added.
        existing_learning_rate: For the language model and the vision tower.
    """

    language_model: bool
    vision_blocks: int | Literal["all"]
    fusion: bool = True
    new_learning_rate: float = 1e-4
    existing_learning_rate: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("new_learning_rate", "existing_learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"`{name} = {getattr(self, name)!r}` is no learning rate.",
                    "It must be above zero.",
                    "To freeze a part, leave it out of the stage.",
                )


STAGES = {
    "helium-image": TrainingStage(language_model=True, vision_blocks=4),
    "qwen-image": TrainingStage(language_model=False, vision_blocks=4),
    "qwen-image-video": TrainingStage(language_model=False, vision_blocks=0),
    "qwen-livecc": TrainingStage(language_model=False, vision_blocks=0),
}
"""The rows of Table 10."""


AutoConfig.register("casa_tiny_vision", TinyVisionConfig)
AutoConfig.register("casa", CasaConfig)
