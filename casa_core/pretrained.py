"""What transformers expects of a model beside its forward: initial weights, attention by name, gradient
checkpointing, reasons for arguments that the model does not take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from casa_core.backbones.text_attention import TEXT_ATTENTION
from casa_core.config import CasaConfig
from casa_core.errors import ConfigError, DataError
from casa_core.fusion.layers import FusionLayer
from casa_core.fusion.qformer import QFormer

CACHE_ARGUMENT = "cache" if hasattr(ModelOutput, "cache_params") else "past_key_values"
"""transformers' name of the cache argument: 5.24 renamed it, and warns of the old name in every layer."""

ATTENTION_BACKENDS = {"eager": "reference", "sdpa": "auto", "flash_attention_2": "flash"}
"""transformers' names of attention implementations → the backend of every attention in the model."""


_POSITIONS = ("Positions follow from the text and from where its images stand.", "Leave it out.")
_ALL_TEXT = ("Every token is text; image_counts tells where images stand between them.", "Leave it out.")
_FRAMES = (
    "A frame of a video is an image of its own.",
    "Pass a Sample with an Image per frame to CasaProcessor, which makes pixel_values of them.",
)
_ONE_STACK = ("The model is one decoder.", "Pass input_ids, attention_mask and labels.")
_COUNTS = ("image_counts holds what it held, and survives padding.", "Pass what CasaProcessor returns.")
_UNKNOWN = (
    "Images have positions among token ids; RoPE positions and masks follow from both.",
    "Pass what CasaProcessor returns.",
)
ARGUMENT_REASONS: dict[str, tuple[str, str]] = {
    "output_attentions": (
        "Attention runs over packed rows and windows and never forms that matrix.",
        "Use `casa inspect` or casa_core.analysis, which measure it.",
    ),
    "head_mask": (
        "Attention runs in kernels that compute all heads together.",
        "Leave it out, or zero the head's columns of o_proj.",
    ),
    "output_router_logits": ("No layer is a mixture of experts.", "Leave it out."),
    **dict.fromkeys(("position_ids", "cache_position", "rope_deltas"), _POSITIONS),
    **dict.fromkeys(("token_type_ids", "mm_token_type_ids"), _ALL_TEXT),
    **dict.fromkeys(("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"), _FRAMES),
    **dict.fromkeys(("decoder_input_ids", "decoder_attention_mask", "encoder_outputs"), _ONE_STACK),
    **dict.fromkeys(("image_rows", "image_positions"), _COUNTS),
}
"""Arguments that models of transformers take and this one does not → why, and what to do."""


def refuse_arguments(given: Mapping[str, Any], names: Iterable[str] = ARGUMENT_REASONS) -> None:
    """Refuse arguments of those names; ``None`` and ``False`` ask for nothing.

    Raises:
        DataError: Naming the first, with the reason that is its own.
    """
    for name in sorted(names):
        if given.get(name) is not None and given[name] is not False:
            why, remedy = ARGUMENT_REASONS.get(name, _UNKNOWN)
            raise DataError(f"The model takes no argument {name!r}.", why, remedy)


def refuse_beside_cache(
    labels: torch.Tensor | None, inputs_embeds: torch.Tensor | None, output_hidden_states: bool | None
) -> None:
    """Refuse what a forward with a cache cannot take or give.

    Raises:
        DataError: Naming it.
    """
    if labels is not None:
        raise DataError(
            "Labels were passed together with a cache.",
            "A cached forward keeps no gradients.",
            "Train with use_cache=False and without a cache.",
        )
    if inputs_embeds is not None:
        raise DataError(
            "`inputs_embeds` was passed together with a cache.",
            "A cached forward reads each row's token ids in pieces, and embeds them itself.",
            "Pass input_ids, or leave the cache and use_cache out.",
        )
    if output_hidden_states:
        raise DataError(
            "`output_hidden_states = True` was passed together with a cache.",
            "A cached forward keeps the states of each row's last token only.",
            "Pass use_cache=False, to generate() too, or run the finished tokens through the model once.",
        )


class CasaPreTrainedModel(PreTrainedModel):
    """Base of the fused model.

    Attributes:
        attention_backend: The backend of attention inside segments: packed text, windows, the Q-Former.
    """

    config_class = CasaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    gradient_checkpointing = False
    accepts_loss_kwargs = True  # the Trainer then passes num_items_in_batch
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
    config: CasaConfig
    attention_backend: Any

    def __init__(self, config: CasaConfig) -> None:
        super().__init__(config)
        self._pin_attention()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the modules that transformers does not know."""
        super()._init_weights(module)
        if isinstance(module, QFormer):
            init.normal_(module.queries, std=self.config.text_config.initializer_range)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Random weights wherever none were loaded.

        transformers initialises the language model's own modules, but not the gates of fusion layers among
        them; those follow here. Loaded gates stay (their weights are marked).
        """
        fusions = [module for module in self.modules() if isinstance(module, FusionLayer)]
        fresh = [fusion for fusion in fusions if not getattr(fusion, "_is_hf_initialized", False)]
        super().initialize_weights()
        with init.guard_torch_init_functions():
            for fusion in fresh:
                fusion.reset_gate()

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, str], allow_all_kernels: bool = False
    ) -> None:
        """Choose how attention is computed: ``eager``, ``sdpa`` or ``flash_attention_2``.

        One choice for the whole model: its parts have no attention of their own to choose.

        Raises:
            ConfigError: If the name is unknown, or what it needs is not installed.
        """
        if isinstance(attn_implementation, dict):
            parts = [name for name in attn_implementation if name]
            if parts:
                raise ConfigError(
                    f"`attn_implementation` names {', '.join(parts)} alone.",
                    "Language model, fusion layers and vision tower share one choice.",
                    f"Pass one of {', '.join(ATTENTION_BACKENDS)} for the whole model.",
                )
            attn_implementation = attn_implementation.get("", self.config._attn_implementation or "sdpa")
        self.config._attn_implementation_internal = self._check_and_adjust_attn_implementation(
            attn_implementation, allow_all_kernels=allow_all_kernels
        )
        self._pin_attention()

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, is_init_check: bool = False, allow_all_kernels: bool = False
    ) -> str:
        """transformers asks this before it builds the model, and we do when the choice changes."""
        name = attn_implementation or "sdpa"
        if name not in ATTENTION_BACKENDS:
            raise ConfigError(
                f"`attn_implementation = {name!r}` is not available.",
                f"Expected one of {', '.join(map(repr, ATTENTION_BACKENDS))}.",
                "Use sdpa, which chooses the fastest kernel there is.",
            )
        if name == "flash_attention_2" and find_spec("flash_attn") is None:
            raise ConfigError(
                "`attn_implementation = 'flash_attention_2'` needs the package flash-attn.",
                "It is not installed here.",
                "Run pip install --no-build-isolation 'casa[gpu]', or use sdpa.",
            )
        return name

    def _pin_attention(self) -> None:
        """The parts' own settings must not change with the whole's: transformers' implementations, eager and
        the rest, do not keep packed documents apart, and would let text see what comes after it."""
        self.attention_backend = ATTENTION_BACKENDS[self.config._attn_implementation or "sdpa"]
        self.config.text_config._attn_implementation_internal = TEXT_ATTENTION
        self.config.vision_config._attn_implementation_internal = "sdpa"

    def _check_placement(self) -> None:
        """Refuse a model spread over several devices; weights may wait on the host or on a disk.

        Raises:
            ConfigError: Naming the devices.
        """
        placed: dict[str, Any] = getattr(self, "hf_device_map", None) or {}
        devices = sorted({str(device) for device in placed.values()} - {"cpu", "disk"})
        if len(devices) > 1:
            raise ConfigError(
                f"`device_map` spreads the model over the devices {', '.join(devices)}.",
                "Image tokens and the layout of windows are shared by all layers and lie on one device.",
                f'Load it with device_map={{"": {devices[0]!r}}}.',
            )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> CasaPreTrainedModel:
        """Where weights become bf16 or fp16 (``to``, ``half``, DeepSpeed), RoPE's frequencies stay in fp32.

        Rounded to eight bits they would be off by up to 0.4 %: by radians a few thousand positions on.
        """
        exact = {name: b for name, b in self.named_buffers() if b.dtype == torch.float32}
        super()._apply(fn, recurse)
        for name, buffer in list(self.named_buffers()):
            if name in exact and name.endswith("inv_freq") and buffer.itemsize < 4:
                module, _, own = name.rpartition(".")
                self.get_submodule(module).register_buffer(
                    own, exact[name].to(buffer.device), persistent=False
                )
        return self

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Does nothing: a checkpoint folder imports this package, instead of holding a copy of a module."""

    def recompute_activations(self) -> None:
        """Turn gradient checkpointing on, by the name that it has in this version of transformers."""
        getattr(self, "activation_checkpointing_enable", self.gradient_checkpointing_enable)()

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        """Recompute activations in the backward pass: what ``gradient_checkpointing_enable()`` calls.

        Raises:
            ConfigError: With reentrant checkpointing.
        """
        choice = getattr(gradient_checkpointing_func, "keywords", {})
        if choice.get("use_reentrant"):
            raise ConfigError(
                "Gradient checkpointing with use_reentrant=True would lose the images' gradients.",
                "Image tokens reach the layers beside their input, which reentrant checkpoints lose.",
                "Pass gradient_checkpointing_kwargs={'use_reentrant': False}, the default.",
            )
        if "use_reentrant" not in choice:
            gradient_checkpointing_func = partial(gradient_checkpointing_func, use_reentrant=False)
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, every_n_layers)

    def enable_input_require_grads(self) -> None:
        """Does nothing: ``gradient_checkpointing_enable()`` calls it for the sake of reentrant checkpoints.

        Those are refused here, and gradients at a frozen tower's input would only run it backwards.
        """

    def _recomputed(self, module: Callable[..., torch.Tensor], *inputs: Any) -> torch.Tensor:
        """``module(*inputs)``; with gradient checkpointing on, its activations are not kept."""
        if not (self.gradient_checkpointing and self.training):
            return module(*inputs)
        blocks = module.modules() if isinstance(module, nn.Module) else ()
        if any(isinstance(block, GradientCheckpointingLayer) for block in blocks):
            return module(*inputs)  # its blocks are checkpointed one by one
        return self._gradient_checkpointing_func(module, *inputs)
