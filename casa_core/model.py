"""The fused model: vision tower, language model with fusion layers, and the loss.

Shape suffixes: B rows, L text tokens of a row, S stream tokens of a row (text, or text and inserted image
tokens), T text tokens of all rows, N image tokens, P patches, E values of a patch, C width, V vocabulary, A
trained (answer) tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel, PreTrainedModel
from transformers.utils.generic import ModelOutput

from casa_core.backbones.block import FusedBlock
from casa_core.backbones.families import family_of
from casa_core.backbones.text_attention import TEXT_ATTENTION
from casa_core.backbones.vision import build_tower
from casa_core.config import CasaConfig
from casa_core.errors import DataError
from casa_core.fusion.attention import Backend, Segments
from casa_core.fusion.layers import FusionLayer, FusionState
from casa_core.fusion.qformer import QFormer
from casa_core.kv_cache import TextCache, WindowCache
from casa_core.layout import Layout, LayoutRules, Packing, packed_layout
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
    """

    loss: torch.Tensor | None = None
    loss_sum: torch.Tensor | None = None
    trained_tokens: int | None = None
    logits: torch.Tensor | None = None


class CasaForConditionalGeneration(PreTrainedModel):
    """A language model that sees images through fusion layers, or has them inserted into its text.

    With fusion layers image tokens are keys and values there only: they enter neither the text's KV cache nor
    the feed-forward layers (unless ``image_ffn`` sends them through).

    Args:
        config: Backbone, tower and fusion.
    """

    config_class = CasaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = [  # noqa: RUF012
        "FusedHeliumDecoderLayer",
        "HeliumDecoderLayer",
        "FusedQwenDecoderLayer",
        "Qwen2_5_VLDecoderLayer",
        "Qwen2_5_VLVisionBlock",
    ]
    _tied_weights_keys = {"lm_head.weight": "language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: CasaConfig) -> None:
        super().__init__(config)
        settings, text = config.fusion_settings, config.text_config
        self.family = family_of(config)
        self.rules = LayoutRules.of(config)
        self.language_model = self.family.model(text)
        self.language_model.config._attn_implementation = TEXT_ATTENTION
        self.family.fuse(self.language_model, settings)
        self.vision_tower = build_tower(config)
        self.qformer: QFormer | None = None
        if settings.kind == "qformer":
            self.qformer = QFormer(
                text.hidden_size, text.num_attention_heads, settings.qformer_queries, settings.qformer_depth
            )
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.attention_backend: Backend = "auto"
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

    def fused_layers(self) -> list[FusedBlock]:
        """The decoder layers that carry a fusion layer."""
        return [layer for layer in self.language_model.layers if isinstance(layer, FusedBlock)]

    def initialize_fusion(self) -> None:
        """Start every fusion layer from its block's self-attention, as ``config.fusion['init']`` says.

        Call it once, after the backbone's weights are in place.
        """
        for layer in self.fused_layers():
            layer.fusion.initialize(layer.self_attn, layer.input_layernorm)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Random starts of what transformers does not know."""
        super()._init_weights(module)
        if isinstance(module, FusionLayer):
            module.reset_gate()
        elif isinstance(module, QFormer):
            nn.init.normal_(module.queries, std=self.config.text_config.initializer_range)

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        packing: Packing | None = None,
        layout: Layout | None = None,
        images: ImageInputs | None = None,
        text_cache: TextCache | None = None,
        window_cache: WindowCache | None = None,
        loss_mask: torch.Tensor | None = None,
        last_tokens: torch.Tensor | None = None,
    ) -> CasaOutput:
        """Run text tokens through the fused model.

        Args:
            input_ids: (B, L); packed documents come as one row.
            packing: Where documents start and images stand in that row; for forwards without a cache.
            layout: Instead of ``packing``: positions, windows and masks, as cached inference plans them.
            images: New images; the carried ones live in ``window_cache``.
            text_cache: Text KV to read and extend.
            window_cache: KV of the current windows to read and extend.
            loss_mask: (B, L), True where the prediction *of* a token counts.
            last_tokens: (B,) compute only the logits after these tokens.
        """
        if layout is None:
            layout = self._packed_layout(input_ids, packing, images)
        hidden_BLC = self._run(
            self.language_model.embed_tokens(input_ids), layout, images, text_cache, window_cache
        )
        if loss_mask is not None:
            return self._loss(hidden_BLC, input_ids, loss_mask)
        if last_tokens is not None:
            row_B = torch.arange(len(last_tokens), device=hidden_BLC.device)
            hidden_BLC = hidden_BLC[row_B, last_tokens][:, None]
        return CasaOutput(logits=self.lm_head(hidden_BLC))

    def _packed_layout(
        self, input_ids: torch.Tensor, packing: Packing | None, images: ImageInputs | None
    ) -> Layout:
        packing = packing or Packing(document_starts=[0])
        shown = 0 if images is None else len(images.grids)
        if shown != len(packing.image_positions):
            raise DataError(
                f"{shown} images but {len(packing.image_positions)} image positions",
                "each image needs the place where it stands in the text",
                "pass one position for each image",
            )
        return packed_layout(self.rules, input_ids.numel(), packing, input_ids.device)

    def _run(
        self,
        text_BLC: torch.Tensor,
        layout: Layout,
        images: ImageInputs | None,
        text_cache: TextCache | None,
        window_cache: WindowCache | None,
    ) -> torch.Tensor:
        """Embedded text → its last hidden states, (B, L, C)."""
        image_NC = self.embed_images(images, text_BLC.dtype)
        stream = layout.stream
        hidden_BSC = text_BLC if stream is None else stream.join(text_BLC, image_NC)
        state = None
        if layout.windows is not None:
            state = self._fusion_state(hidden_BSC, layout.windows, image_NC, window_cache)
        rope = self.family.text_rope(self.language_model, layout.position_ABS, hidden_BSC)
        last_fused = max(self.rules.fusion.layer_indices(len(self.language_model.layers)), default=-1)
        for index, layer in enumerate(self.language_model.layers):
            extra = {"fusion_state": state} if isinstance(layer, FusedBlock) else {}
            hidden_BSC = layer(
                hidden_BSC,
                attention_mask=layout.attention_mask,
                position_embeddings=rope,
                past_key_values=text_cache,
                documents=layout.documents,
                backend=self.attention_backend,
                **extra,
            )
            if self.rules.fusion.image_ffn and index < last_fused and state and state.image_NC is not None:
                updated_NC = state.image_NC + layer.mlp(layer.post_attention_layernorm(state.image_NC))
                state = replace(state, image_NC=updated_NC)
        hidden_BSC = self.language_model.norm(hidden_BSC)
        return hidden_BSC if stream is None else stream.text(hidden_BSC)

    def embed_images(self, images: ImageInputs | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Image tokens in the language model's width, (N, C), as they meet the language model."""
        if images is None:
            return None
        patches_PE = images.patches_PE.to(self.device)
        image_NC = self.vision_tower(patches_PE, images.grids).to(dtype)
        if self.qformer is None:
            return image_NC
        merge = self.config.vision_config.spatial_merge_size
        tokens = [rows * columns // merge**2 for rows, columns in images.grids]
        return self.qformer(image_NC, tokens, self.attention_backend)

    def _fusion_state(
        self,
        hidden_BLC: torch.Tensor,
        windows: Windows,
        image_NC: torch.Tensor | None,
        cache: WindowCache | None,
    ) -> FusionState | None:
        """Everything the fusion layers share, or ``None`` when no text token lies in a window."""
        if windows.count == 0:
            return None
        device = hidden_BLC.device
        keys = [windows.image_window_N]
        if self.rules.fusion.attends_text:
            keys += [windows.carried_text_window_M, windows.text_window_T]
        segments = Segments.build(windows.text_window_T, np.concatenate(keys), windows.count, device)
        text_position_T = torch.from_numpy(windows.text_position_T).to(device)
        rope = lambda position_AX: self.family.window_rope(self.language_model, position_AX, hidden_BLC)  # noqa: E731
        image_rope = None
        if image_NC is not None:
            image_rope = rope(torch.from_numpy(windows.image_position_AN).to(device))
        return FusionState(
            image_NC=image_NC,
            segments=segments,
            text_rope=rope(text_position_T.expand(self.rules.axes, -1)),
            image_rope=image_rope,
            cache=cache,
            backend=self.attention_backend,
        )

    def turn_keys(self, key_GXD: torch.Tensor, by: int) -> torch.Tensor:
        """Move rotated keys by a number of positions (negative: back), through the backbone's RoPE.

        Rotations compose, so a key at position p becomes the key at p + ``by``. Computed in fp32.
        """
        position_AX = torch.full((self.rules.axes, 1), by, device=key_GXD.device)
        key_XGD = key_GXD.transpose(0, 1).float()
        rope = self.family.window_rope(self.language_model, position_AX, key_XGD)
        return self.family.rotate(key_XGD, rope).transpose(0, 1).to(key_GXD.dtype)

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
