"""The kernels that can compute attention inside segments, and which of them to use.

* ``reference``: one dense mask over all queries and keys. Readable, quadratic; tests and analysis use it.
* ``padded``: similar segments padded into a batch for ``scaled_dot_product_attention``. What a CPU runs,
  and a GPU in fp32: the cost is the sum over segments of queries × keys, and some padding.
* ``varlen``: ``torch.nn.attention.varlen``, FlashAttention as torch ships it, or a newer build where one is
  installed (:mod:`casa_core.fusion.flash_builds`); CUDA only.
* ``flash``: the ``flash-attn`` package; CUDA only.

Shape suffixes: T query tokens, N key tokens, S segments, Q/K longest query/key run of a bucket, H query
heads, G key/value heads, D head size, X any token count (sorted tokens; in a bucket H/G · Q queries).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, cast, get_args

import torch
from torch.nn.functional import scaled_dot_product_attention

from casa_core.errors import ConfigError
from casa_core.fusion.flash_builds import use_newest_flash
from casa_core.fusion.segments import Bucket, Segments, TokenGather, Tokens

Backend = Literal["auto", "reference", "padded", "varlen", "flash"]
# The kernels that take runs of varying length, best first, and the module and name each is imported from.
RUN_KERNELS = {
    "varlen": ("torch.nn.attention.varlen", "varlen_attn"),
    "flash": ("flash_attn", "flash_attn_varlen_func"),
}
INSTALL = {
    "flash": "Run pip install --no-build-isolation 'casa[gpu]', with CUDA and a compiler.",
    "varlen": "Install torch 2.10 or newer.",
}
HALF = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256
OLDEST_GPU = (8, 0)


@cache
def choose_backend(
    requested: Backend, device: torch.device, dtype: torch.dtype, head_dim: int
) -> Literal["reference", "padded", "varlen", "flash"]:
    """The backend that runs where ``requested`` is asked for.

    ``auto`` is ``padded`` on a CPU; on a GPU in bf16 or fp16 ``varlen`` where torch has it, else ``flash``
    where it is installed; else ``padded``.

    Raises:
        ConfigError: If a backend is named that does not exist, or cannot run these tensors.
    """
    if requested not in get_args(Backend):
        names = ", ".join(get_args(Backend))
        raise ConfigError(
            f"There is no attention backend {requested!r}.",
            "Backends are known by these names only.",
            f"Name one of {names}.",
        )
    if requested == "auto":
        able = [name for name in RUN_KERNELS if unsupported_reason(name, device, dtype, head_dim) is None]
        if able and able[0] == "varlen":
            use_newest_flash(device)
        return cast(Any, able[0] if able else "padded")
    obstacle = unsupported_reason(requested, device, dtype, head_dim)
    if obstacle is not None:
        raise ConfigError(f"The attention backend {requested!r} cannot run here.", *obstacle)
    if requested == "varlen":
        use_newest_flash(device)
    return requested


def unsupported_reason(
    backend: str, device: torch.device, dtype: torch.dtype, head_dim: int
) -> tuple[str, str] | None:
    """Why a backend cannot run such tensors, and the remedy; ``None`` if it can."""
    if backend not in RUN_KERNELS:
        return None
    other = 'Leave it to "auto", or name "padded" or "reference".'
    if device.type != "cuda":
        return f"It runs on CUDA devices, not on {device.type}.", other
    if torch.cuda.get_device_capability(device) < OLDEST_GPU:
        return "It needs a GPU of compute capability 8.0 (Ampere) or newer.", other
    if dtype not in HALF:
        return f"It computes in bf16 and fp16, not in {str(dtype).removeprefix('torch.')}.", other
    if head_dim % 8 or head_dim > LARGEST_HEAD:
        return f"Its heads are multiples of 8 up to {LARGEST_HEAD}, not {head_dim}.", other
    try:
        run_kernel(backend)
    except ImportError as error:
        return str(error), INSTALL[backend]
    return None


# A kernel for runs: (queries, keys, values, layout's ends and longest runs…, causal, scale) → (T, H, D).
RunKernel = Callable[..., torch.Tensor]


@cache
def run_kernel(backend: str) -> RunKernel:
    """The kernel of ``flash`` or ``varlen``, imported when first asked for.

    Raises:
        ImportError: If it is not installed.
    """
    module, name = RUN_KERNELS[backend]
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"{module}.{name} cannot be imported ({error}).") from error
    return flash_kernel(function) if backend == "flash" else varlen_kernel(function)


def flash_kernel(flash_attn_varlen_func: Callable[..., Any]) -> RunKernel:
    """flash-attn's function as a :data:`RunKernel`. Since 2.1 its causal mask is aligned at the ends."""

    def attend(*tokens_and_runs: Any, causal: bool, scale: float) -> torch.Tensor:
        return flash_attn_varlen_func(*tokens_and_runs, softmax_scale=scale, causal=causal)

    return attend


def varlen_kernel(varlen_attn: Callable[..., Any]) -> RunKernel:
    """torch's function as a :data:`RunKernel`.

    Its signature differs by version: 2.10 has a flag for causal and no scale; 2.12 wants ``enable_gqa``.

    All versions call ``aten::_flash_attention_forward``, whose causal mask is aligned at the ends
    (``torch.nn.attention.bias`` relies on that for ``causal_lower_right``) and which takes grouped heads.
    """
    known = inspect.signature(varlen_attn).parameters

    def attend(
        query_THD: torch.Tensor,
        key_NGD: torch.Tensor,
        value_NGD: torch.Tensor,
        *runs: Any,
        causal: bool,
        scale: float,
    ) -> torch.Tensor:
        options: dict[str, Any] = {}
        if "window_size" in known:
            options["window_size"] = (-1, 0) if causal else (-1, -1)
        else:
            options["is_causal"] = causal
        if "enable_gqa" in known:
            options["enable_gqa"] = query_THD.shape[1] != key_NGD.shape[1]
        if "scale" in known:
            options["scale"] = scale
        else:  # the kernel's own scale is D^-1/2
            query_THD = query_THD * (scale * query_THD.shape[-1] ** 0.5)
        return varlen_attn(query_THD, key_NGD, value_NGD, *runs, **options)

    return attend


def attend_varlen(
    kernel: RunKernel,
    query_THD: torch.Tensor,
    key_NGD: Tokens,
    value_NGD: Tokens,
    segments: Segments,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """``flash`` and ``varlen``: tokens sorted by segment (usually they are), each run on its own."""
    layout = segments.packed
    out_XHD = kernel(
        layout.queries.whole(query_THD).contiguous(),
        layout.keys.whole(key_NGD).contiguous(),
        layout.keys.whole(value_NGD).contiguous(),
        layout.query_ends,
        layout.key_ends,
        layout.longest_query,
        layout.longest_key,
        causal=causal,
        scale=scale,
    )
    return _in_flat_order([out_XHD], layout.outputs, layout.has_outside)


def attend_padded(
    query_THD: torch.Tensor,
    key_NGD: Tokens,
    value_NGD: Tokens,
    segments: Segments,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """``padded``: a batch for each bucket of similar segments; views where nothing has to move."""
    layout = segments.padded
    queries, keys, values = (
        layout.queries.take(query_THD),
        layout.keys.take(key_NGD),
        layout.keys.take(value_NGD),
    )
    outs = []
    for bucket, *tokens in zip(layout.buckets, queries, keys, values, strict=True):
        query_SHQD, key_SGKD, value_SGKD = (
            part.unflatten(0, (bucket.segments, -1)).transpose(1, 2) for part in tokens
        )
        # A lone last query sees all keys of its segment.
        is_causal = causal and bucket.longest_query > 1
        out_SHQD = _attend_bucket(query_SHQD, key_SGKD, value_SGKD, bucket, is_causal, scale)
        outs.append(out_SHQD.transpose(1, 2).flatten(0, 1))
    return _in_flat_order(outs, layout.outputs, layout.has_outside)


def _attend_bucket(
    query_SHQD: torch.Tensor,
    key_SGKD: torch.Tensor,
    value_SGKD: torch.Tensor,
    bucket: Bucket,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    groups, shared = key_SGKD.shape[1], query_SHQD.shape[1] // key_SGKD.shape[1]
    if causal and bucket.has_equal_lengths:
        # Padding stands at the right end, where a causal mask hides it from every query.
        return scaled_dot_product_attention(
            query_SHQD, key_SGKD, value_SGKD, is_causal=True, scale=scale, enable_gqa=shared > 1
        )
    mask = bucket.causal_mask_S1QK if causal else bucket.key_mask_S11K
    if shared == 1:
        return scaled_dot_product_attention(query_SHQD, key_SGKD, value_SGKD, attn_mask=mask, scale=scale)
    # The query heads of one key head become more queries of it: larger products, which every kernel can do.
    query_SGXD = query_SHQD.unflatten(1, (groups, shared)).flatten(2, 3)
    if causal and mask is not None:
        mask = mask.repeat(1, 1, shared, 1)
    out_SGXD = scaled_dot_product_attention(query_SGXD, key_SGKD, value_SGKD, attn_mask=mask, scale=scale)
    return out_SGXD.unflatten(2, (shared, -1)).flatten(1, 2)


def _in_flat_order(outs: Sequence[torch.Tensor], outputs: TokenGather, has_outside: bool) -> torch.Tensor:
    if has_outside:
        outs = [*outs, outs[0].new_zeros(1, *outs[0].shape[1:])]
    return outputs.whole(outs)
