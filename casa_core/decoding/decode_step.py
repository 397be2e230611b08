"""One more token for each of some sequences, over their caches: the forward that decoding repeats.

It computes what the model's own forward computes for single text tokens, written so that little is left
beside reading the weights: projections of the same input are one matrix, the caches are read in place, and
all that changes from step to step is one small tensor of numbers. Nothing is planned and no image is read
here.

Shape suffixes: A sequences that are extended, B rows of the caches, C width, H query heads, G key/value
heads, R queries of a key head, D head size, S text entries, M image entries, W window text entries, K keys,
V vocabulary, X any count, N numbers of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from casa_core.backbones.block import FusedBlock
from casa_core.compiling import compiled_step, vary, wants_compiling
from casa_core.decoding.fused_linear import Quantize, fuse, generates, ready, stored
from casa_core.decoding.kv_cache import KeysValues, TextCache, WindowCache

if TYPE_CHECKING:
    from casa_core.fusion.layers import FusionLayer, Rope, Rotate
    from casa_core.model import CasaForConditionalGeneration

NUMBERS = ("token", "row", "text", "position", "images", "window_text", "window_position")
"""What a step is told of each sequence: its new token, its row of the caches, the entries that its text KV
and its window's text already hold (-1: it is in no window), its position in self-attention, the image tokens
of its window, and its position in there."""


_READ = ("row", "text", "images", "window_text")


@dataclass(frozen=True, slots=True)
class StepCaches:
    """The caches of all B rows.

    Attributes:
        text: Per layer, (B, G, entries, D) each; none where the fusion layer replaces self-attention.
        images: Per fusion layer, (B, entries, G, D) each.
        window_text: Per fusion layer, the same, where they attend to text (eq. 3).
    """

    text: Sequence[KeysValues]
    images: Sequence[KeysValues]
    window_text: Sequence[KeysValues]

    @property
    def axes(self) -> list[tuple[Sequence[KeysValues], int]]:
        """Each of them, and which of its axes counts entries."""
        return [(self.text, 2), (self.images, 1), (self.window_text, 1)]


def step_caches(text: TextCache, windows: WindowCache) -> StepCaches:
    """The caches as a step takes them."""
    return StepCaches(
        [(text.keys[layer], text.values[layer]) for layer in sorted(text.keys)],
        [windows.images[layer] for layer in sorted(windows.images)],
        [windows.text[layer] for layer in sorted(windows.text)],
    )


class DecodeStep(nn.Module):
    """The decoding forward of a model, whose weights it shares.

    The model's projections become views of the fused ones; the model computes what it did before. On a CPU
    the step has a copy of them, laid out for its kernels: their memory twice.

    Args:
        model: In evaluation mode, on its device.
        compile: Compile the step (``torch.compile``: needs a C++ compiler on a CPU, Triton on a GPU;
            ``"auto"``: where they are). Each of a few cases is compiled when it first occurs: one sequence or
            several, in windows or not, with image tokens or not, the caches' first rows or others.
        quantize: Type in which the step's copy of the weights is held, in place of the model's own.

    Raises:
        ConfigError: If the compiler, or what quantized weights need, is missing here.
    """

    def __init__(
        self,
        model: CasaForConditionalGeneration,
        *,
        compile: bool | Literal["auto"] = False,
        quantize: Quantize | None = None,
    ) -> None:
        super().__init__()
        self.language_model: Any = model.language_model
        self.lm_head = ready(model.lm_head, quantize)
        self.family, self.axes = model.family, model.rules.axes
        self.layers = nn.ModuleList(
            _StepLayer(layer, model.family.rotate, quantize) for layer in self.language_model.layers
        )
        self._entries = torch.zeros(0, dtype=torch.int64, device=model.device)
        self._compiled = wants_compiling(compile, model.device)
        self._run: Any = compiled_step(self.forward) if self._compiled else self.forward

    @property
    def is_compiled(self) -> bool:
        """Whether steps run as compiled graphs."""
        return self._compiled

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._entries.device

    @torch.inference_mode()
    def run(self, numbers_NA: Sequence[Sequence[int]], text: TextCache, windows: WindowCache) -> torch.Tensor:
        """One step, (A, V) logits: :meth:`forward` with what it needs to know of the caches.

        Args:
            numbers_NA: :data:`NUMBERS` of each sequence. The caches have room for one more entry.
            text, windows: The caches; the caller counts the new entries.
        """
        rows, entries, images, held = (numbers_NA[NUMBERS.index(name)] for name in _READ)
        # Whole blocks, as the caches have them: what a row does not hold is masked.
        sizes = [_blocks(size) for size in (max(entries) + 1, max(images), max(held) + 1)]
        if len(self._entries) < max(sizes):
            self._entries = torch.arange(2 * max(sizes), device=self._entries.device)
        caches = step_caches(text, windows)
        entry_S, entry_M, entry_W = (self._entries[:size] for size in sizes)
        numbers = torch.tensor(numbers_NA, device=self._entries.device)
        if self._compiled:
            vary(1, [numbers])
            vary(0, [entry_S, entry_M, entry_W])
            for part, axis in caches.axes:
                vary(axis, [t for pair in part for t in pair])
        return self._run(
            numbers,
            caches,
            entry_S,
            entry_M,
            entry_W,
            together=list(rows) == list(range(len(rows))),
            windowed=max(held) >= 0,
        )

    def forward(
        self,
        numbers_NA: torch.Tensor,
        caches: StepCaches,
        entry_S: torch.Tensor,
        entry_M: torch.Tensor,
        entry_W: torch.Tensor,
        *,
        together: bool,
        windowed: bool,
    ) -> torch.Tensor:
        """Logits after one more token of each sequence, (A, V); the caches take its keys and values.

        Args:
            numbers_NA: :data:`NUMBERS` of each sequence.
            entry_S, entry_M, entry_W: 0, 1, 2, … up to the entries to look at, those written now included.
                M may be 0.
            together: The sequences are rows 0, 1, 2, … of the caches.
            windowed: Some sequence is in a window.
        """
        token_A, row_A, text_A, position_A, images_A, window_text_A, window_position_A = numbers_NA.unbind()
        hidden_AC = self.language_model.embed_tokens(token_A)
        position_X = torch.cat([position_A, window_position_A]) if windowed else position_A
        rope = self.family.window_rope(self.language_model, position_X.expand(self.axes, -1), hidden_AC)
        count = len(token_A)
        held = [entry_M < images_A[:, None]] if len(entry_M) and caches.images else []
        held += [entry_W <= window_text_A[:, None]] if caches.window_text else []
        in_window_A1 = window_text_A[:, None] >= 0
        step = _Step(
            rows=None if together else row_A,
            row_A=row_A,
            text_A=text_A,
            text_mask_A11S=_mask(entry_S <= text_A[:, None], hidden_AC),
            text_rope=(rope[0][:count], rope[1][:count]),
            window_text_A=window_text_A,
            in_window_A1=in_window_A1,
            window_rope=(rope[0][count:], rope[1][count:]),
            shown=(len(entry_M), len(entry_W)),
            # A sequence outside every window would attend to nothing at all, and its softmax be NaN.
            window_mask_A11K=_mask(_joined(held) | ~in_window_A1, hidden_AC) if windowed and held else None,
        )
        text, images, window_text = iter(caches.text), iter(caches.images), iter(caches.window_text)
        for layer in self.layers:
            assert isinstance(layer, _StepLayer)
            hidden_AC = layer(
                hidden_AC,
                step,
                None if layer.replaces else next(text),
                next(images, None) if layer.fusion is not None else None,
                next(window_text, None) if layer.attends_text else None,
                windowed,
            )
        return self.lm_head(self.language_model.norm(hidden_AC))


@dataclass(frozen=True, slots=True)
class _Step:
    """What the layers of one step share; fields as in :class:`DecodeStep`."""

    rows: torch.Tensor | None
    row_A: torch.Tensor
    text_A: torch.Tensor
    text_mask_A11S: torch.Tensor
    text_rope: Rope
    window_text_A: torch.Tensor
    in_window_A1: torch.Tensor
    window_rope: Rope
    shown: tuple[int, int]
    window_mask_A11K: torch.Tensor | None

    def of_rows(self, cache_BXXD: torch.Tensor) -> torch.Tensor:
        """The sequences' rows of a cache: a view where they are its first."""
        if self.rows is None:
            return cache_BXXD[: len(self.row_A)]
        return cache_BXXD.index_select(0, self.rows)


class _StepLayer(nn.Module):
    """One decoder block. ``fusion`` is ``None`` where it has no fusion layer."""

    def __init__(self, layer: Any, rotate: Rotate, quantize: Quantize | None) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.rotate = rotate
        self.head_dim: int = attention.head_dim
        self.heads = attention.q_proj.out_features // self.head_dim
        self.groups = attention.k_proj.out_features // self.head_dim
        self.input_norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.fusion: FusionLayer | None = layer.fusion if isinstance(layer, FusedBlock) else None
        settings = None if self.fusion is None else self.fusion.settings
        self.placement = "none" if settings is None else settings.placement
        self.replaces = settings is not None and settings.replaces
        self.attends_text = settings is not None and settings.attends_text
        self.borrows = settings is not None and settings.borrows_projections
        self.own_norm = settings is not None and settings.text_norm == "own"
        self.qkv = ready(fuse([attention.q_proj, attention.k_proj, attention.v_proj]), quantize)
        self.output = ready(attention.o_proj, quantize)
        self.gate_up = ready(fuse([mlp.gate_proj, mlp.up_proj]), quantize)
        self.down = ready(mlp.down_proj, quantize)
        self.activation = mlp.act_fn
        self.fusion_query: nn.Module = self.qkv
        self.fusion_output: nn.Module = self.output
        if self.fusion is not None and not self.borrows:
            own = self.fusion
            keyed = [own.k_proj, own.v_proj] if self.attends_text else []
            self.fusion_query = ready(fuse([own.q_proj, *keyed]), quantize)
            self.fusion_output = ready(own.o_proj, quantize)

    def forward(
        self,
        x_AC: torch.Tensor,
        step: _Step,
        text: KeysValues | None,
        images: KeysValues | None,
        window_text: KeysValues | None,
        windowed: bool,
    ) -> torch.Tensor:
        """(A, C) → (A, C), as :class:`casa_core.backbones.block.FusedBlock`."""
        fuse_here = lambda placement: windowed and self.placement == placement  # noqa: E731
        if fuse_here("before") or fuse_here("replace"):
            x_AC = x_AC + self._fuse(x_AC, None, step, images, window_text)
        if text is not None:
            normed_AC = self.input_norm(x_AC)
            projected_AX = self.qkv(normed_AC)
            mixed_AC = self._attend(projected_AX, step, text)
            if fuse_here("parallel"):
                shared = None if self.own_norm else (normed_AC, projected_AX)
                x_AC = x_AC + self._fuse(x_AC, shared, step, images, window_text)
            x_AC = x_AC + self.output(mixed_AC)
        if fuse_here("after"):
            x_AC = x_AC + self._fuse(x_AC, None, step, images, window_text)
        gate_AX, up_AX = self.gate_up(self.mlp_norm(x_AC)).chunk(2, dim=-1)
        return x_AC + self.down(self.activation(gate_AX) * up_AX)

    def _attend(self, projected_AX: torch.Tensor, step: _Step, text: KeysValues) -> torch.Tensor:
        """Self-attention over the text KV, (A, H·D)."""
        query_AHD, key_AGD, value_AGD = self._split(projected_AX)
        query_AHD, key_AGD = (self.rotate(x, step.text_rope) for x in (query_AHD, key_AGD))
        for cache, new_AGD in zip(text, (key_AGD, value_AGD), strict=True):
            cache[step.row_A, :, step.text_A] = new_AGD.to(cache.dtype)
        entries = step.text_mask_A11S.shape[-1]
        keys, values = (step.of_rows(cache[:, :, :entries]) for cache in text)
        return self._softmax(query_AHD, keys, values, step.text_mask_A11S)

    def _fuse(
        self,
        x_AC: torch.Tensor,
        shared: tuple[torch.Tensor, torch.Tensor] | None,
        step: _Step,
        images: KeysValues | None,
        window_text: KeysValues | None,
    ) -> torch.Tensor:
        """The fusion layer's update, (A, C): zero outside every window.

        Args:
            shared: Text that has passed the block's norm, and its projections, where self-attention has them.
        """
        fusion = self.fusion
        assert fusion is not None
        if shared is None:
            normed_AC = (fusion.text_norm if self.own_norm else self.input_norm)(x_AC)
            projected_AX = self.fusion_query(normed_AC)
        else:
            normed_AC, projected_AX = shared
            projected_AX = projected_AX if self.borrows else self.fusion_query(normed_AC)
        query_AHD, key_AGD, value_AGD = self._split(projected_AX)
        query_AHD = self.rotate(query_AHD, step.window_rope)
        held: list[tuple[KeysValues, int]] = []
        if images is not None and step.shown[0]:
            held.append((images, step.shown[0]))
        if window_text is not None:
            self._write_window(self.rotate(key_AGD, step.window_rope), value_AGD, step, window_text)
            held.append((window_text, step.shown[1]))
        keys, values = (
            _joined([step.of_rows(pair[part][:, :entries]) for pair, entries in held]) for part in (0, 1)
        )
        assert step.window_mask_A11K is not None
        mixed_AC = self._softmax(
            query_AHD, keys.transpose(1, 2), values.transpose(1, 2), step.window_mask_A11K
        )
        mixed_AC = torch.where(step.in_window_A1, mixed_AC, 0.0)
        return fusion.gated(self.fusion_output(mixed_AC), normed_AC)

    def _write_window(
        self, key_AGD: torch.Tensor, value_AGD: torch.Tensor, step: _Step, window_text: KeysValues
    ) -> None:
        """Keep the token's keys and values; outside a window they go where the next window begins."""
        entry_A = step.window_text_A.clamp(min=0)
        for cache, new_AGD in zip(window_text, (key_AGD, value_AGD), strict=True):
            cache[step.row_A, entry_A] = new_AGD.to(cache.dtype)

    def _split(self, projected_AX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value heads; the latter two are empty where they were not projected."""
        heads_AXD = projected_AX.view(len(projected_AX), -1, self.head_dim)
        ends = self.heads, self.heads + self.groups
        return heads_AXD[:, : ends[0]], heads_AXD[:, ends[0] : ends[1]], heads_AXD[:, ends[1] :]

    def _softmax(
        self,
        query_AHD: torch.Tensor,
        key_AGKD: torch.Tensor,
        value_AGKD: torch.Tensor,
        mask_A11K: torch.Tensor,
    ) -> torch.Tensor:
        query_AGRD = query_AHD.view(len(query_AHD), self.groups, -1, self.head_dim)
        if generates(query_AHD) and query_AGRD.shape[2] <= _FEW_QUERIES:
            return _attend_few(query_AGRD, key_AGKD, value_AGKD, mask_A11K).reshape(len(query_AHD), -1)
        mixed_AGRD = scaled_dot_product_attention(
            query_AGRD,
            key_AGKD.to(query_AGRD.dtype),
            value_AGKD.to(query_AGRD.dtype),
            attn_mask=mask_A11K,
            scale=self.head_dim**-0.5,
        )
        return mixed_AGRD.reshape(len(query_AHD), -1)


_FEW_QUERIES = 2
"""Queries of a key head up to which generated loops beat torch's attention kernel."""


def _attend_few(
    query_AGRD: torch.Tensor, key_AGKD: torch.Tensor, value_AGKD: torch.Tensor, mask_A11K: torch.Tensor
) -> torch.Tensor:
    """Attention as loops over the keys and the values, (A, G, R, D): compiled, each is read once a query."""
    scale = query_AGRD.shape[-1] ** -0.5
    stored_AGRD = stored(query_AGRD.float())
    score_AGRK = (stored_AGRD[:, :, :, None] * key_AGKD[:, :, None].float()).sum(-1) * scale + mask_A11K
    weight_AGRK = stored((score_AGRK - score_AGRK.amax(-1, keepdim=True)).exp())
    mixed_AGRD = (weight_AGRK[..., None] * value_AGKD[:, :, None].float()).sum(-2)
    return (mixed_AGRD / weight_AGRK.sum(-1, keepdim=True)).to(query_AGRD.dtype)


def _mask(seen_AK: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What attention adds to its scores, (A, 1, 1, K): nothing, or minus infinity where not seen."""
    mask_AK = torch.zeros_like(seen_AK, dtype=like.dtype).masked_fill(~seen_AK, -math.inf)
    return mask_AK[:, None, None]


def _blocks(entries: int) -> int:
    return -(-entries // TextCache.block) * TextCache.block


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Entries of one kind after those of another, along the second axis."""
    return torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0]
