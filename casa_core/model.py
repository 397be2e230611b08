"""The fused model: vision tower, language model with fusion layers, and the loss.

Shape suffixes: B rows, L tokens of a row, T text tokens of all rows, N image tokens, P patches, E values of a
patch, C width, V vocabulary, A trained (answer) tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AttentionInterface, AutoModel, DynamicCache, PreTrainedModel
from transformers.models.helium import HeliumModel
from transformers.utils.generic import ModelOutput

from casa_core.backbones.helium import FusedHeliumDecoderLayer, fuse, window_rope
from casa_core.backbones.tiny import TinyVisionTower
from casa_core.config import CasaConfig
from casa_core.fusion.attention import Backend, Segments, segment_attention
from casa_core.fusion.layers import FusionState, ImageCache, copy_projections
from casa_core.windows import Windows


@dataclass(slots=True)
class ImageInputs:
    """Images of one forward, in reading order.

    Attributes:
        patches_PE: Flattened, normalised patches of all images.
        grids: (rows, columns) of patches of each image.
    """

    patches_PE: torch.Tensor
    grids: Sequence[tuple[int, int]]


@dataclass
class CasaOutput(ModelOutput):
    """What a forward returns.

    Attributes:
        loss: Mean next-token loss over this call's answer tokens; ``None`` without a loss mask.
        loss_sum: The same, summed: what training divides by the *global* count of answer tokens.
        trained_tokens: Number of answer tokens A.
        logits: (B, kept, V), or (A, V) where a loss mask was given.
        past_key_values: The text KV cache, image tokens never in it.
    """

    loss: torch.Tensor | None = None
    loss_sum: torch.Tensor | None = None
    trained_tokens: int | None = None
    logits: torch.Tensor | None = None
    past_key_values: DynamicCache | None = None


def _text_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    documents: Segments | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Self-attention of the text: inside packed documents, or over a cache under an explicit (B, 1, L, S)
    mask.

    Heads come as (B, H, L, D), as transformers' attention interface has them; (B, L, H, D) goes back.
    """
    if documents is not None:
        query_THD, key_TGD, value_TGD = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        out_THD = segment_attention(query_THD, key_TGD, value_TGD, documents, causal=True, scale=scaling)
        return out_THD.view(query.shape[0], query.shape[2], *out_THD.shape[1:]), None
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=key.shape[1] != query.shape[1]
    )
    return out.transpose(1, 2), None


_ATTENTION = "casa_text"
AttentionInterface.register(_ATTENTION, _text_attention)


class CasaForConditionalGeneration(PreTrainedModel):
    """A language model that sees images through fusion layers.

    Image tokens are keys and values of the fusion layers only: they enter neither the text's KV cache nor the
    feed-forward layers.

    Args:
        config: Backbone, tower and fusion.
    """

    config_class = CasaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["FusedHeliumDecoderLayer", "HeliumDecoderLayer"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: CasaConfig) -> None:
        super().__init__(config)
        self.language_model = HeliumModel(config.text_config)
        self.language_model.config._attn_implementation = _ATTENTION
        fuse(self.language_model, config.fusion_settings)
        self.vision_tower = TinyVisionTower(config.vision_config, config.text_config.hidden_size)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.attention_backend: Backend = "padded"
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language-model head."""
        return self.lm_head

    def fused_layers(self) -> list[FusedHeliumDecoderLayer]:
        """The decoder layers that carry a fusion layer."""
        return [layer for layer in self.language_model.layers if isinstance(layer, FusedHeliumDecoderLayer)]

    def initialize_fusion(self) -> None:
        """Start every fusion layer from its block's self-attention, as ``config.fusion['init']`` says.

        Call it once, after the backbone's weights are in place.
        """
        zero_output = self.config.fusion_settings.init == "zero_output"
        for layer in self.fused_layers():
            copy_projections(layer.fusion, layer.self_attn, zero_output=zero_output)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        *,
        windows: Windows,
        images: ImageInputs | None = None,
        documents: Segments | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        image_cache: ImageCache | None = None,
        loss_mask: torch.Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> CasaOutput:
        """Run text tokens through the fused model.

        Args:
            input_ids: (B, L).
            position_ids: (B, L), restarting in each packed document.
            windows: Layout of the B·L text tokens and all image tokens in sight.
            images: New images; the carried ones live in ``image_cache``.
            documents: Packed documents as causal segments (training), instead of ``attention_mask``.
            attention_mask: (B, 1, L, S) boolean, True where a token may attend, over cached and new text.
            past_key_values: Text KV cache to extend.
            image_cache: Image KV of the current windows to read and extend.
            loss_mask: (B, L), True where the prediction *of* a token counts.
            logits_to_keep: Keep the last so many positions of each row; 0 keeps all.
        """
        hidden_BLC = self.language_model.embed_tokens(input_ids)
        state = self._fusion_state(hidden_BLC, windows, images, image_cache)
        rope = self.language_model.rotary_emb(hidden_BLC, position_ids=position_ids)
        for layer in self.language_model.layers:
            extra = {"fusion_state": state} if isinstance(layer, FusedHeliumDecoderLayer) else {}
            hidden_BLC = layer(
                hidden_BLC,
                attention_mask=attention_mask,
                position_embeddings=rope,
                past_key_values=past_key_values,
                documents=documents,
                **extra,
            )
        hidden_BLC = self.language_model.norm(hidden_BLC)
        if loss_mask is not None:
            return self._loss(hidden_BLC, input_ids, loss_mask)
        logits = self.lm_head(hidden_BLC[:, -logits_to_keep:])
        return CasaOutput(logits=logits, past_key_values=past_key_values)

    def _fusion_state(
        self, hidden_BLC: torch.Tensor, windows: Windows, images: ImageInputs | None, cache: ImageCache | None
    ) -> FusionState | None:
        """Everything the fusion layers share, or ``None`` when no text token has an image in sight."""
        if windows.count == 0:
            return None
        device = hidden_BLC.device
        segments = Segments.build(windows.text_window_T, windows.image_window_N, windows.count, device)
        position = lambda array: torch.from_numpy(array).to(device)  # noqa: E731
        text_rope = window_rope(self.language_model, position(windows.text_position_T), hidden_BLC)
        image_NC = image_rope = None
        if images is not None:
            image_NC = self.vision_tower(images.patches_PE.to(device), images.grids).to(hidden_BLC.dtype)
            new = windows.image_position_N[windows.carried_tokens :]
            image_rope = window_rope(self.language_model, position(new), hidden_BLC)
        return FusionState(image_NC, segments, text_rope, image_rope, cache, self.attention_backend)

    def _loss(self, hidden_BLC: torch.Tensor, input_ids: torch.Tensor, loss_mask: torch.Tensor) -> CasaOutput:
        """Next-token loss on answer tokens; only their logits are ever computed."""
        target_A = loss_mask.flatten().nonzero().squeeze(1)
        logits_AV = self.lm_head(hidden_BLC.flatten(0, 1).index_select(0, target_A - 1))
        labels_A = input_ids.flatten().index_select(0, target_A)
        loss_sum = cross_entropy(logits_AV.float(), labels_A, reduction="sum")
        count = len(target_A)
        return CasaOutput(
            loss=loss_sum / max(count, 1), loss_sum=loss_sum, trained_tokens=count, logits=logits_AV
        )


AutoModel.register(CasaConfig, CasaForConditionalGeneration)
