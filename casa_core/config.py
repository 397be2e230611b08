"""Configuration of a fused model: the text backbone, the vision tower and the fusion between them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.helium import HeliumConfig

from casa_core.errors import ConfigError

FusionKind = Literal["cross_attention"]
Placement = Literal["parallel"]
Positions = Literal["window"]
ImageNorm = Literal["block_input_norm"]
FusionInit = Literal["self_attention", "zero_output"]
Layers = Literal["all"] | int | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionConfig:
    """How images enter the language model.

    Attributes:
        kind: ``cross_attention``: text tokens attend to the image tokens of their window (paper, eq. 2).
        placement: ``parallel`` (⊕): the update is added beside the self-attention's, from the same normed
            input.
        layers: ``all``; ``n``: every n-th, counted so that the last layer of each group of n is fused; or a
            tuple of layer indices.
        positions: ``window``: inside a fusion layer the image tokens of a window stand at 0 … N−1 in raster
            order, consecutive images one after the other, and the j-th text token of the window at N + j.
            Keys can therefore be cached after RoPE for as long as the window lasts. The paper leaves this
            open.
        image_norm: ``block_input_norm``: image tokens pass through the block's own input norm before K and V,
            because projections copied from self-attention expect inputs of that scale. No new parameters.
        init: ``self_attention``: q, k, v, o start as a copy of the same block's self-attention (paper, 4.1).
            ``zero_output``: the same, with the output projection zeroed, so that an untrained fused model is
            exactly its backbone; the better start for a pretrained backbone that must not be disturbed.
    """

    kind: FusionKind = "cross_attention"
    placement: Placement = "parallel"
    layers: Layers = "all"
    positions: Positions = "window"
    image_norm: ImageNorm = "block_input_norm"
    init: FusionInit = "self_attention"

    def __post_init__(self) -> None:
        choices = {
            "kind": FusionKind,
            "placement": Placement,
            "positions": Positions,
            "image_norm": ImageNorm,
            "init": FusionInit,
        }
        for name, literal in choices.items():
            value = getattr(self, name)
            if value not in get_args(literal):
                raise ConfigError(
                    f"fusion.{name} = {value!r} is not available",
                    f"expected one of {', '.join(map(repr, get_args(literal)))}",
                    f"set model.fusion.{name} to one of them",
                )
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))

    def layer_indices(self, num_layers: int) -> tuple[int, ...]:
        """Indices of the decoder layers that carry a fusion layer.

        Raises:
            ConfigError: If an index lies outside the backbone, or no layer would be fused.
        """
        if self.layers == "all":
            return tuple(range(num_layers))
        if isinstance(self.layers, int):
            chosen = tuple(range(self.layers - 1, num_layers, self.layers)) if self.layers > 0 else ()
        else:
            chosen = tuple(sorted(set(self.layers)))
        if not chosen or chosen[0] < 0 or chosen[-1] >= num_layers:
            raise ConfigError(
                f"fusion.layers = {self.layers!r} does not fit a backbone of {num_layers} layers",
                f"layer indices run from 0 to {num_layers - 1}, and at least one layer must be fused",
                'use "all", a number n (every n-th layer) or a list of indices',
            )
        return chosen


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


class CasaConfig(PreTrainedConfig):
    """Configuration of :class:`casa_core.model.CasaForConditionalGeneration`.

    Args:
        text_config: The language model's own configuration (``helium``).
        vision_config: The vision tower's configuration (``casa_tiny_vision``).
        fusion: Fields of :class:`FusionConfig`.
        images_withheld: True for the blind baseline: a model trained with every image left out.
    """

    model_type = "casa"
    sub_configs = {  # noqa: RUF012 (transformers' contract)  # pyright: ignore
        "text_config": HeliumConfig,
        "vision_config": TinyVisionConfig,
    }

    def __init__(
        self,
        text_config: dict[str, Any] | HeliumConfig | None = None,
        vision_config: dict[str, Any] | TinyVisionConfig | None = None,
        fusion: dict[str, Any] | FusionConfig | None = None,
        images_withheld: bool = False,
        **kwargs: Any,
    ) -> None:
        self.text_config = (
            HeliumConfig(**text_config) if isinstance(text_config, dict) else text_config or HeliumConfig()
        )
        self.vision_config = (
            TinyVisionConfig(**vision_config)
            if isinstance(vision_config, dict)
            else vision_config or TinyVisionConfig()
        )
        fields = dataclasses.asdict(fusion) if isinstance(fusion, FusionConfig) else dict(fusion or {})
        self.fusion = dataclasses.asdict(_fusion_config(fields))
        self.images_withheld = images_withheld
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    @property
    def fusion_settings(self) -> FusionConfig:
        """The fusion, typed (transformers keeps the name ``fusion_config`` for kernels of its own)."""
        return _fusion_config(self.fusion)


def _fusion_config(fields: dict[str, Any]) -> FusionConfig:
    known = {f.name for f in dataclasses.fields(FusionConfig)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ConfigError(
            f"fusion has no setting {unknown[0]!r}",
            f"known settings: {', '.join(sorted(known))}",
            "remove or rename it",
        )
    return FusionConfig(**fields)


AutoConfig.register("casa_tiny_vision", TinyVisionConfig)
AutoConfig.register("casa", CasaConfig)
