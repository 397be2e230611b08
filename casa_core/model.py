"""The fused model: vision tower, language model with fusion layers, and the loss.

Shape suffixes: B rows, L text tokens of a row, S stream tokens of a row (text, or text and inserted image
tokens), T text tokens of all rows, N image tokens, I images, P patches, E values of a patch, C width, V
vocabulary, A trained (answer) tokens, or position axes before other letters, K kept columns, M carried text
tokens, X any token count, G key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoModelForImageTextToText

from casa_core.backbones.block import FusedBlock
from casa_core.backbones.families import family_of
from casa_core.backbones.text_attention import TEXT_ATTENTION
from casa_core.backbones.vision import build_tower
from casa_core.compiling import on_host, plans
from casa_core.config import CasaConfig
from casa_core.decoding.kv_cache import TextCache, WindowCache
from casa_core.errors import ConfigError, DataError
from casa_core.fusion.attention import Segments
from casa_core.fusion.layers import AttentionProbe, FusionState
from casa_core.fusion.layout import Layout, LayoutRules, packed_layout
from casa_core.fusion.qformer import QFormer
from casa_core.fusion.segments import to_device
from casa_core.fusion.windows import Windows
from casa_core.generation import CasaCache, CasaGenerationMixin, forward_with_cache
from casa_core.hf_batch import PaddedBatch, kept_columns, read_padded, states_at
from casa_core.inputs import IMAGE_INPUTS, CasaOutput, EmbeddedImages, ImageInputs, Packing, merged_grids
from casa_core.pretrained import CACHE_ARGUMENT, CasaPreTrainedModel, refuse_arguments, refuse_beside_cache

_PLANNED = {"packing", "layout", "images", "text_cache", "window_cache", "loss_mask", "last_tokens"}


class CasaForConditionalGeneration(CasaPreTrainedModel, CasaGenerationMixin):
    """A language model that sees images through fusion layers, or has them inserted into its text.

    With fusion layers image tokens are keys and values there only: they enter neither the text's KV cache nor
    the feed-forward layers (unless ``image_ffn`` sends them through).

    Args:
        config: Backbone, tower and fusion.

    Attributes:
        attention_probe: Set by :mod:`casa_core.analysis` while it measures: a forward's windows → the probe
            that replaces the attention of its fusion layers.
    """

    attention_probe: Callable[[Windows], AttentionProbe] | None = None

    def __init__(self, config: CasaConfig) -> None:
        super().__init__(config)
        settings, text = config.fusion_settings, config.text_config
        self.family = family_of(config)
        self.rules = LayoutRules.of(config)
        self.language_model = self.family.model(text)
        self.family.fuse(self.language_model, settings)
        self.vision_tower = build_tower(config)
        self.qformer: QFormer | None = None
        if settings.kind == "qformer":
            self.qformer = QFormer(
                text.hidden_size, text.num_attention_heads, settings.qformer_queries, settings.qformer_depth
            )
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
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

    @plans
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        image_counts: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        cache: CasaCache | None = None,
        past_key_values: CasaCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **planned: Any,
    ) -> CasaOutput | tuple[Any, ...]:
        """Run text tokens through the fused model.

        Args:
            input_ids: (B, L), rows padded on either side.
            attention_mask: (B, L), 1 for tokens, 0 for padding; with a cache the columns it has read may
                stand before.
            pixel_values: (P, E) patches of all images, row by row in reading order.
            image_grid_thw: (I, 3) frames (1), rows and columns of patches of each image.
            image_counts: (B, L) how many of the images stand right before each token; 0 in padding.
            inputs_embeds: (B, L, C) embedded tokens in the place of ``input_ids``; without a cache only.
            labels: (B, L), -100 where a token is not to be predicted. Padding and the first token of a row
                never are.
            num_items_in_batch: Divides the summed loss instead of the labels' number.
            cache: Keys and values of earlier columns, to be extended.
            past_key_values: The same by the name it had in transformers before 5.24.
            use_cache: Make a cache where there is none. Its forward has no gradient.
            logits_to_keep: Compute the logits of so many last columns (0: all), or of these columns. With a
                cache each one costs a forward: keep 1.
            output_hidden_states: Return them too: see :class:`CasaOutput`. Without a cache only.
            return_dict: ``False`` returns a tuple.
            planned: Arguments of :meth:`forward_planned`, in place of all others but ``input_ids``.

        Raises:
            DataError: If inputs do not fit each other, or are unknown; the message names them.
        """
        planned = self._check_call(planned)
        cache = cache if past_key_values is None else past_key_values
        image_inputs: dict[str, Any] = dict(
            zip(IMAGE_INPUTS, (pixel_values, image_grid_thw, image_counts), strict=True)
        )
        if planned:
            assert input_ids is not None, "planned batches bring their ids"
            output = self.forward_planned(input_ids, **planned)
        elif use_cache or cache is not None:
            refuse_beside_cache(labels, inputs_embeds, output_hidden_states)
            output = forward_with_cache(self, input_ids, attention_mask, image_inputs, cache, logits_to_keep)
        else:
            batch = read_padded(
                self.config, input_ids, attention_mask, image_inputs, inputs_embeds=inputs_embeds
            )
            wanted = (
                self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            )
            output = self._forward_padded(batch, labels, num_items_in_batch, logits_to_keep, bool(wanted))
        return output.to_tuple() if return_dict is False else output

    def forward_planned(
        self,
        input_ids: torch.Tensor,
        *,
        packing: Packing | None = None,
        layout: Layout | None = None,
        images: ImageInputs | EmbeddedImages | None = None,
        text_cache: TextCache | None = None,
        window_cache: WindowCache | None = None,
        loss_mask: torch.Tensor | None = None,
        last_tokens: torch.Tensor | None = None,
    ) -> CasaOutput:
        """The forward of training and of cached inference: documents in one flat row, or rows as planned.

        Call the model itself, which passes these arguments on.

        Args:
            input_ids: (B, L); packed documents come as one row.
            packing: Where documents start and images stand in that row; for forwards without a cache.
            layout: Instead of ``packing``: positions, windows and masks, as cached inference plans them.
            images: New images; carried ones are in ``window_cache``.
            text_cache: Text KV to read and extend.
            window_cache: KV of the current windows to read and extend.
            loss_mask: (B, L), True where the prediction *of* a token counts; better on the host.
            last_tokens: (B,) compute only the logits after these tokens.
        """
        if layout is None:
            layout = self._packed_layout(input_ids.numel(), input_ids.device, packing, images)
        hidden_BLC = self._run(
            self.language_model.embed_tokens(input_ids), layout, images, text_cache, window_cache
        )
        if loss_mask is not None:
            return self._loss(hidden_BLC, input_ids, loss_mask)
        if last_tokens is not None:
            row_B = torch.arange(len(last_tokens), device=hidden_BLC.device)
            hidden_BLC = hidden_BLC[row_B, last_tokens][:, None]
        return CasaOutput(logits=self.lm_head(hidden_BLC))

    @plans
    def _check_call(self, planned: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a planned batch that were given; unknown ones are refused."""
        self._check_placement()
        given = {name: value for name, value in planned.items() if value is not None and value is not False}
        refuse_arguments(given, given.keys() - _PLANNED)
        attention = self.config.text_config._attn_implementation
        if attention != TEXT_ATTENTION:
            raise ConfigError(
                f"The language model's attention was set to {attention!r}.",
                "The implementations of transformers would let packed documents see each other.",
                "Use model.set_attn_implementation, which leaves the parts as they are.",
            )
        return given

    @plans
    def _forward_padded(
        self,
        batch: PaddedBatch,
        labels: torch.Tensor | None,
        num_items_in_batch: int | torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        output_hidden_states: bool,
    ) -> CasaOutput:
        """A padded batch without a cache: its real tokens as packed documents of one row."""
        tokens, packing = batch.packed(self.device)
        images = batch.images and ImageInputs(batch.images.patches_PE, batch.images.grids)
        text_1TC = tokens if tokens.is_floating_point() else self.language_model.embed_tokens(tokens)
        layout = self._packed_layout(text_1TC.shape[1], text_1TC.device, packing, images)
        kept: list[torch.Tensor] | None = [] if output_hidden_states else None
        hidden_TC = self._run(text_1TC, layout, images, None, None, kept)[0]
        columns_K = kept_columns(logits_to_keep, batch.real_BL.shape[1])
        logits_BKV = self.lm_head(states_at(hidden_TC, batch.latest_tokens()[:, columns_K]))
        hidden_states = None if kept is None else tuple(states_at(x[0], batch.own_tokens()) for x in kept)
        if labels is None:
            return CasaOutput(logits=logits_BKV, hidden_states=hidden_states)
        labels = batch.checked_labels(labels, len(columns_K)).to(logits_BKV.device)
        loss = self.loss_function(
            logits=logits_BKV,
            labels=labels,
            vocab_size=logits_BKV.shape[-1],
            num_items_in_batch=num_items_in_batch,
        )
        return CasaOutput(loss=loss, logits=logits_BKV, hidden_states=hidden_states)

    @on_host
    def _packed_layout(
        self,
        tokens: int,
        device: torch.device,
        packing: Packing | None,
        images: ImageInputs | EmbeddedImages | None,
    ) -> Layout:
        packing = packing or Packing(document_starts=[0])
        shown = 0 if images is None else len(images.grids)
        if shown != len(packing.image_positions):
            raise DataError(
                f"{shown} images but {len(packing.image_positions)} image positions.",
                "Each image needs its position in the text.",
                "Pass one position for each image.",
            )
        return packed_layout(self.rules, tokens, packing, device)

    def _run(
        self,
        text_BLC: torch.Tensor,
        layout: Layout,
        images: ImageInputs | EmbeddedImages | None,
        text_cache: TextCache | None,
        window_cache: WindowCache | None,
        kept: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Embedded text → its last hidden states, (B, L, C); ``kept`` gets each layer's input, and these."""
        image_NC = self.embed_images(images, text_BLC.dtype)
        stream = layout.stream
        hidden_BSC = text_BLC if stream is None else stream.join(text_BLC, image_NC)
        state = None
        if layout.windows is not None:
            state = self._fusion_state(hidden_BSC, layout.windows, image_NC, window_cache)
        rope = self.family.text_rope(self.language_model, layout.position_ABS, hidden_BSC)
        last_fused = max(self.rules.fusion.layer_indices(len(self.language_model.layers)), default=-1)
        for index, layer in enumerate(self.language_model.layers):
            if kept is not None:
                kept.append(hidden_BSC if stream is None else stream.text(hidden_BSC))
            extra: dict[str, Any] = {CACHE_ARGUMENT: text_cache}
            if isinstance(layer, FusedBlock):
                extra["fusion_state"] = state
            hidden_BSC = layer(
                hidden_BSC,
                attention_mask=layout.attention_mask,
                position_embeddings=rope,
                documents=layout.documents,
                backend=self.attention_backend,
                **extra,
            )
            if self.rules.fusion.image_ffn and index < last_fused and state and state.image_NC is not None:
                state = replace(state, image_NC=self._recomputed(partial(_image_ffn, layer), state.image_NC))
        hidden_BSC = self.language_model.norm(hidden_BSC)
        hidden_BLC = hidden_BSC if stream is None else stream.text(hidden_BSC)
        if kept is not None:
            kept.append(hidden_BLC)
        return hidden_BLC

    def embed_images(
        self,
        images: ImageInputs | EmbeddedImages | None,
        dtype: torch.dtype,
        tower: Callable[..., torch.Tensor] | None = None,
    ) -> torch.Tensor | None:
        """(N, C) image tokens as the language model takes them: from the tower, or the Q-Former behind it.

        ``tower``: what runs it, in place of itself.
        """
        if images is None:
            return None
        if isinstance(images, EmbeddedImages):
            return images.features_NC.to(dtype)
        weight = next(self.vision_tower.parameters(), None)
        patches_PE = images.patches_PE.to(self.device, self.dtype if weight is None else weight.dtype)
        image_NC = self._recomputed(tower or self.vision_tower, patches_PE, images.grids).to(dtype)
        if self.qformer is None:
            return image_NC
        merge = self.config.vision_config.spatial_merge_size
        tokens = [rows * columns for rows, columns in merged_grids(images.grids, merge)]
        return self._recomputed(self.qformer, image_NC, tokens, self.attention_backend)

    @on_host
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
        text_position_T = to_device(windows.text_position_T, device)
        rope = lambda position_AX: self.family.window_rope(self.language_model, position_AX, hidden_BLC)  # noqa: E731
        image_rope = None
        if image_NC is not None:
            image_rope = rope(to_device(windows.image_position_AN, device))
        return FusionState(
            image_NC=image_NC,
            segments=segments,
            text_rope=rope(text_position_T.expand(self.rules.axes, -1)),
            image_rope=image_rope,
            cache=cache,
            backend=self.attention_backend,
            probe=self.attention_probe and self.attention_probe(windows),
        )

    def shift_rope(self, key_GXD: torch.Tensor, by: int) -> torch.Tensor:
        """Move rotated keys by a number of positions (negative: back), through the backbone's RoPE.

        Rotations compose, so a key at position p becomes the key at p + ``by``. Computed in fp32.
        """
        position_AX = torch.full((self.rules.axes, 1), by, device=key_GXD.device)
        key_XGD = key_GXD.transpose(0, 1).float()
        rope = self.family.window_rope(self.language_model, position_AX, key_XGD)
        return self.family.rotate(key_XGD, rope).transpose(0, 1).to(key_GXD.dtype)

    def _loss(self, hidden_BLC: torch.Tensor, input_ids: torch.Tensor, loss_mask: torch.Tensor) -> CasaOutput:
        """Next-token loss on answer tokens; only their logits are ever computed."""
        # Counted where the mask is: on the host this does not wait for the device.
        target_A = loss_mask.flatten().nonzero().squeeze(1).to(hidden_BLC.device, non_blocking=True)
        logits_AV = self.lm_head(hidden_BLC.flatten(0, 1).index_select(0, target_A - 1))
        labels_A = input_ids.flatten().index_select(0, target_A)
        losses_A = cross_entropy(logits_AV.float(), labels_A, reduction="none")
        loss_sum, count = losses_A.sum(), len(target_A)
        return CasaOutput(
            loss=loss_sum / max(count, 1),
            loss_sum=loss_sum,
            trained_tokens=count,
            token_losses_A=losses_A.detach(),
            logits=logits_AV,
        )


def _image_ffn(layer: Any, image_NC: torch.Tensor) -> torch.Tensor:
    """Image tokens through a block's feed-forward network (paper, Table 5)."""
    return image_NC + layer.mlp(layer.post_attention_layernorm(image_NC))


AutoModel.register(CasaConfig, CasaForConditionalGeneration)
AutoModelForImageTextToText.register(CasaConfig, CasaForConditionalGeneration)
