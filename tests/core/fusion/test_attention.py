"""Attention inside segments: every backend against a loop over queries and heads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.attention import Shape, contenders
from benchmarks.attention import Tokens as BenchmarkTokens
from benchmarks.attention import main as run_benchmark
from casa_core.errors import ConfigError
from casa_core.fusion import backends, segments
from casa_core.fusion.attention import Backend, Segments, segment_attention, segment_attention_weights
from casa_core.fusion.backends import (
    attend_varlen,
    choose_backend,
    flash_kernel,
    unsupported_reason,
    varlen_kernel,
)
from casa_core.fusion.segments import Tokens
from tests.support.naive.attention import naive_attention

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
BACKENDS: tuple[Backend, ...] = ("padded", "reference")
SEGMENTS = 4
SIZE = 8
SCALE = 0.4
# Of the norm of the result, forward and backward: some roundings of the type (bf16: 2^-9 each).
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2}

Attend = Callable[[torch.Tensor, Tokens, Tokens, Segments, bool], torch.Tensor]


def tensors(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(device, dtype).requires_grad_() for tensor in drawn]


def doubles_of(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in inputs]


def segments_of(queries: list[int], keys: list[int], device: str = "cpu") -> Segments | None:
    return Segments.build(np.array(queries, dtype=np.int64), np.array(keys, dtype=np.int64), SEGMENTS, device)


def attend_with(backend: Backend) -> Attend:
    return lambda query, key, value, layout, causal: segment_attention(
        query, key, value, layout, causal=causal, scale=SCALE, backend=backend
    )


def assert_naive(
    attend: Attend,
    queries: list[int],
    keys: list[int],
    heads: tuple[int, int],
    *,
    causal: bool,
    dtype: torch.dtype = torch.float64,
    cut: int = 0,
) -> None:
    """Values and gradients are the loop's in float64, from the same numbers. ``cut``: keys in two tensors."""
    (tokens, count), (many, few) = (len(queries), len(keys)), heads
    query, key, value = inputs = tensors((tokens, many, SIZE), *[(count, few, SIZE)] * 2, dtype=dtype)
    exact_query, exact_key, exact_value = exact = doubles_of(inputs)
    expected = naive_attention(exact_query, exact_key, exact_value, queries, keys, causal=causal, scale=SCALE)
    layout = segments_of(queries, keys)
    if layout is None:
        assert not expected.any()
        return
    parts = (key[:cut], key[cut:]), (value[:cut], value[cut:])
    ours = attend(query, *(parts if 0 < cut < count else (key, value)), layout, causal)
    assert ours.dtype == dtype
    (weights,) = tensors(tuple(ours.shape), dtype=dtype)
    mine = torch.autograd.grad((ours * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights.detach().double()).sum(), exact)
    for name, one, other in zip("oqkv", (ours, *mine), (expected, *theirs), strict=True):
        # A gradient may cancel to nothing (a query that sees one key); what is left is rounding.
        norm = torch.maximum(other.norm(), expected.norm())
        assert (one.double() - other).norm() <= TOLERANCE[dtype] * norm, name
    if -1 in queries:
        assert not ours[[place for place, segment in enumerate(queries) if segment == -1]].any()


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Segments of each query and key: a segment's queries are its last keys; some tokens are in none."""
    counts = st.tuples(st.integers(0, 5), st.integers(0, 7))
    texts, images = zip(*draw(st.lists(counts, min_size=1, max_size=SEGMENTS)), strict=True)
    numbered = lambda lengths: [number for number, length in enumerate(lengths) for _ in range(length)]  # noqa: E731
    queries = numbered(texts) + [-1] * draw(st.integers(0, 2))
    keys = numbered(images) + numbered(texts) + [-1] * draw(st.integers(0, 2))
    if draw(st.booleans()):
        queries, keys = draw(st.permutations(queries)), draw(st.permutations(keys))
    return queries or [-1], keys or [-1]


HEADS = st.sampled_from([(1, 1), (4, 2), (2, 2), (3, 1)])
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=100, deadline=None)
@given(
    layout=layouts(),
    heads=HEADS,
    dtype=DTYPES,
    causal=st.booleans(),
    call_cost=st.sampled_from([0, 1024]),
    shortest_piece=st.sampled_from([0, 16]),
    cut=st.integers(0, 9),
)
def test_queries_attend_to_exactly_the_keys_of_their_segment(
    backend: Backend,
    layout: tuple[list[int], list[int]],
    heads: tuple[int, int],
    dtype: torch.dtype,
    causal: bool,
    call_cost: int,
    shortest_piece: int,
    cut: int,
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "CALL_COST", call_cost)  # 0: a bucket for each length
        patch.setattr(segments, "COPIED_SCORES", 100)
        patch.setattr(segments, "SHORTEST_PIECE", shortest_piece)  # 0: no token moves alone
        assert_naive(attend_with(backend), *layout, heads, causal=causal, dtype=dtype, cut=cut)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=SEGMENTS), heads=HEADS)
def test_packed_documents_attend_causally_to_themselves(
    backend: Backend, lengths: list[int], heads: tuple[int, int]
):
    documents = [number for number, length in enumerate(lengths) for _ in range(length)]
    assert_naive(attend_with(backend), documents, documents, heads, causal=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nobody_attends_where_no_segment_has_both_a_query_and_a_key(backend: Backend):
    query, key, value = tensors((2, 4, SIZE), (3, 2, SIZE), (3, 2, SIZE))
    assert segments_of([-1, 2], [0, 0, 1]) is None
    out = segment_attention(query, key, value, None, causal=False, backend=backend)
    assert out.shape == query.shape
    assert not out.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_outside_every_segment_gets_zero_and_spoils_no_gradient(backend: Backend):
    query, key, value = inputs = tensors((3, 4, SIZE), (2, 2, SIZE), (2, 2, SIZE))
    out = segment_attention(query, key, value, segments_of([-1, 0, 1], [0, 0]), causal=False, backend=backend)
    assert not out[[0, 2]].any()
    assert out[1].any()
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][[0, 2]].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_default_scale_is_that_of_the_head_size(backend: Backend):
    query, key, value = tensors((3, 2, SIZE), (3, 2, SIZE), (3, 2, SIZE))
    layout = segments_of([0, 0, 0], [0, 0, 0])
    default = segment_attention(query, key, value, layout, causal=False, backend=backend)
    given_ = segment_attention(query, key, value, layout, causal=False, scale=SIZE**-0.5, backend=backend)
    torch.testing.assert_close(default, given_, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
def test_autocast_takes_queries_in_fp32_beside_values_in_bf16_as_rope_leaves_them(
    backend: Backend, causal: bool
):
    query, key, value = tensors((5, 4, SIZE), (9, 2, SIZE), (9, 2, SIZE), dtype=torch.float32)
    queries, keys = [0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1, 1]
    with torch.autocast("cpu", torch.bfloat16):
        ours = segment_attention(
            query,
            key,
            value.bfloat16(),
            segments_of(queries, keys),
            causal=causal,
            scale=SCALE,
            backend=backend,
        )
    assert ours.dtype == torch.bfloat16
    expected = naive_attention(query, key, value, queries, keys, causal=causal, scale=SCALE)
    assert (ours - expected).norm() < 1e-2 * expected.norm()
    ours.sum().backward()
    assert query.grad is not None
    assert query.grad.dtype == torch.float32


def test_one_long_window_does_not_pad_the_short_ones_to_its_length():
    images, text = np.r_[1024, np.full(200, 3)], np.full(201, 5)
    layout = Segments.build(np.repeat(np.arange(201), text), np.repeat(np.arange(201), images), 201, "cpu")
    assert layout is not None
    scores = sum(each.segments * each.longest_query * each.longest_key for each in layout.padded.buckets)
    assert scores == (images * text).sum()


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=30))
def test_buckets_hold_each_segment_once_and_never_pad_more_than_one_bucket_would(
    lengths: list[tuple[int, int]],
):
    queries, keys = np.array(lengths).T
    buckets = segments.bucket_by_length(queries, keys)
    assert sorted(np.concatenate(buckets).tolist()) == list(range(len(lengths)))
    padded = sum(len(bucket) * queries[bucket].max() * keys[bucket].max() for bucket in buckets)
    assert (queries * keys).sum() <= padded <= len(lengths) * queries.max() * keys.max()


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ([0, 1, 2, 3], [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),  # decoding: a token a row, equal caches
        ([0, 0, 0], [0, 0, 0, 0, 0]),  # one segment
        ([0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]),  # windows of their own lengths, in order
    ],
)
def test_tokens_that_stand_where_they_are_needed_are_not_moved(
    monkeypatch: pytest.MonkeyPatch, queries: list[int], keys: list[int]
):
    monkeypatch.setattr(segments, "CALL_COST", 0)
    layout = segments_of(queries, keys)
    assert layout is not None
    for rows in (layout.padded.queries, layout.padded.keys, layout.padded.outputs):
        assert not rows.is_needed
    for rows in (layout.packed.queries, layout.packed.keys, layout.packed.outputs):
        assert not rows.is_needed


def test_the_weights_of_the_reference_are_those_it_mixes_values_with_and_obey_a_mask_of_ones_own():
    queries, keys = [0, -1, 1, 1, 0], [0, 1, 1, 0, 0, -1, 1]
    query, key, value = tensors((5, 4, SIZE), (7, 2, SIZE), (7, 2, SIZE))
    layout = segments_of(queries, keys)
    allowed = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    allowed[3] = False
    for mask in (None, allowed):
        weights = segment_attention_weights(query, key, layout, causal=True, allowed_TN=mask)
        ours = segment_attention(query, key, value, layout, causal=True, backend="reference", allowed_TN=mask)
        torch.testing.assert_close(
            torch.einsum("htn,nhd->thd", weights, value.repeat_interleave(2, dim=1)), ours
        )
    assert not weights[:, ~allowed].any()
    assert not weights[:, [1, 3]].any()
    torch.testing.assert_close(weights[:, 2].sum(-1), torch.ones(4, dtype=torch.float64))
    with pytest.raises(ConfigError, match="reference"):
        segment_attention(query, key, value, layout, causal=True, allowed_TN=allowed)


# Kernels for runs, played by a loop: each has the signature of a released version.


def runs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: Any, *, causal: bool, scale: float
) -> torch.Tensor:
    query_ends, key_ends, longest_query, longest_key = ends
    assert query_ends.dtype == key_ends.dtype == torch.int32
    lengths = query_ends.diff().tolist(), key_ends.diff().tolist()
    assert (max(lengths[0]), max(lengths[1])) == (longest_query, longest_key)
    assert query.is_contiguous()
    assert key.is_contiguous()
    numbers = [[number for number, length in enumerate(side) for _ in range(length)] for side in lengths]
    return naive_attention(query, key, value, *numbers, causal=causal, scale=scale)


def varlen_2_10(query, key, value, cu_q, cu_k, max_q, max_k, is_causal=False, return_aux=None):
    ends = cu_q, cu_k, max_q, max_k
    return runs(query, key, value, ends, causal=is_causal, scale=query.shape[-1] ** -0.5)


def varlen_2_11(query, key, value, cu_q, cu_k, max_q, max_k, *, scale=0.0, window_size=(-1, -1)):
    ends = cu_q, cu_k, max_q, max_k
    return runs(query, key, value, ends, causal=window_size == (-1, 0), scale=scale)


def varlen_2_13(
    query,
    key,
    value,
    cu_q,
    cu_k,
    max_q,
    max_k,
    *,
    scale=0.0,
    window_size=(-1, -1),
    enable_gqa=False,
):
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError("try enable_gqa")
    return varlen_2_11(query, key, value, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window_size)


def flash_2_8(q, k, v, cu_q, cu_k, max_q, max_k, dropout_p=0.0, softmax_scale=0.0, causal=False):
    return runs(q, k, v, (cu_q, cu_k, max_q, max_k), causal=causal, scale=softmax_scale)


@pytest.mark.parametrize(
    "kernel",
    [
        varlen_kernel(varlen_2_10),
        varlen_kernel(varlen_2_11),
        varlen_kernel(varlen_2_13),
        flash_kernel(flash_2_8),
    ],
    ids=["varlen 2.10", "varlen 2.11", "varlen 2.13", "flash-attn 2.8"],
)
@settings(max_examples=20, deadline=None)
@given(layout=layouts(), heads=HEADS, causal=st.booleans(), cut=st.integers(0, 9))
def test_a_kernel_for_runs_gets_its_tokens_sorted_and_its_outputs_go_back_to_their_queries(
    kernel: backends.RunKernel,
    layout: tuple[list[int], list[int]],
    heads: tuple[int, int],
    causal: bool,
    cut: int,
):
    def attend(
        query: torch.Tensor, key: Tokens, value: Tokens, layout: Segments, causal: bool
    ) -> torch.Tensor:
        return attend_varlen(kernel, query, key, value, layout, causal, SCALE)

    assert_naive(attend, *layout, heads, causal=causal, cut=cut)


@pytest.fixture
def gpu_with(monkeypatch: pytest.MonkeyPatch):
    """A GPU of some capability on which some kernels can be imported, as far as the choice can tell."""

    def pretend(*kernels: str, capability: tuple[int, int] = (9, 0)) -> None:
        def run_kernel(backend: str) -> None:
            if backend not in kernels:
                raise ImportError(f"no {backend}")

        choose_backend.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(backends, "run_kernel", run_kernel)
        monkeypatch.setattr(backends, "use_newest_flash", lambda device: "FA2")

    yield pretend
    choose_backend.cache_clear()


@pytest.mark.parametrize(
    ("kernels", "dtype", "head_dim", "chosen"),
    [
        (("flash", "varlen"), torch.bfloat16, 128, "varlen"),
        (("varlen",), torch.float16, 128, "varlen"),
        (("flash",), torch.float16, 128, "flash"),
        ((), torch.bfloat16, 128, "padded"),
        (("flash", "varlen"), torch.float32, 128, "padded"),
        (("flash", "varlen"), torch.bfloat16, 12, "padded"),
        (("flash", "varlen"), torch.bfloat16, 512, "padded"),
    ],
)
def test_a_gpu_takes_the_best_kernel_that_can_run(
    gpu_with: Any, kernels: tuple[str, ...], dtype: torch.dtype, head_dim: int, chosen: str
):
    gpu_with(*kernels)
    assert choose_backend("auto", GPU, dtype, head_dim) == chosen


def test_an_old_gpu_pads(gpu_with: Any):
    gpu_with("flash", "varlen", capability=(7, 5))
    assert choose_backend("auto", GPU, torch.float16, 128) == "padded"


def test_a_backend_can_be_forced_or_says_why_not(gpu_with: Any):
    assert choose_backend("auto", CPU, torch.bfloat16, 128) == "padded"
    assert choose_backend("reference", CPU, torch.float32, 7) == "reference"
    for name in ("varlen", "flash"):
        with pytest.raises(ConfigError, match="not on cpu"):
            choose_backend(name, CPU, torch.bfloat16, 128)
    gpu_with("varlen")
    assert choose_backend("varlen", GPU, torch.bfloat16, 128) == "varlen"
    assert choose_backend("padded", GPU, torch.bfloat16, 128) == "padded"
    with pytest.raises(ConfigError, match="float32"):
        choose_backend("varlen", GPU, torch.float32, 128)
    with pytest.raises(ConfigError, match=r"casa\[gpu\]"):
        choose_backend("flash", GPU, torch.bfloat16, 128)
    with pytest.raises(ConfigError, match="padded, varlen"):
        choose_backend("fastest", CPU, torch.float32, 128)  # pyright: ignore[reportArgumentType]


def test_the_installed_torchs_kernel_is_understood():
    known = backends.inspect.signature(
        pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    ).parameters
    assert "window_size" in known or "is_causal" in known
    assert callable(backends.run_kernel("varlen"))


@pytest.mark.parametrize("attends_text", [False, True])
def test_the_benchmark_compares_ways_to_the_same_result(attends_text: bool):
    shape = Shape(windows=3, image=8, text=5, heads=4, kv_heads=2, size=SIZE, attends_text=attends_text)
    ways = contenders(shape, BenchmarkTokens(shape))
    ours = ways["ours"]()
    for name in ("dense mask", "loop"):
        torch.testing.assert_close(ways[name](), ours)
    inserted_text = ways["insertion"]().unflatten(0, (3, 13))[:, 8:].flatten(0, 1)
    assert (
        torch.allclose(inserted_text, ours, atol=1e-5) == attends_text
    )  # eq. 3 sees what inserted text sees
    assert shape.flops() == 4 * 3 * (5 * 8 + attends_text * 15) * 4 * SIZE


def test_the_benchmark_writes_what_it_measured_and_how(tmp_path: Path):
    arguments = "--windows 2 --image-tokens 4 --text-tokens 3 --heads 2 --kv-heads 1 --head-dim 8 --rounds 1"
    threads = torch.get_num_threads()
    try:
        run_benchmark([*arguments.split(), "--json", str(tmp_path / "attention.json")])
    finally:
        torch.set_num_threads(threads)
    written = json.loads((tmp_path / "attention.json").read_text())
    assert arguments in written["command"]
    assert written["results"].keys() == {"CA, 1 kv heads", "CASA, 1 kv heads"}
    for result in written["results"].values():
        assert all(value > 0 for value in result.values())
        assert {"ours, forward", "loop, forward+backward", "floor, forward", "GFLOP/s"} <= result.keys()
    assert "times ours" in (tmp_path / "attention.md").read_text()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", get_args(Backend))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [16, 2])
def test_on_a_gpu_every_backend_agrees_with_float64_and_waits_for_nothing(
    backend: Backend, dtype: torch.dtype, causal: bool, groups: int
):
    if backend == "flash":
        pytest.importorskip("flash_attn")
    if unsupported_reason(backend, GPU, dtype, 128) is not None:
        with pytest.raises(ConfigError):
            choose_backend(backend, GPU, dtype, 128)
        return
    text, images = [50, 1, 20, 7], [300, 64, 0, 5]
    queries = np.r_[-1, np.repeat(np.arange(4), text), -1]
    keys = np.r_[np.repeat(np.arange(4), images), np.repeat(np.arange(4), text)]
    layout = segments_of(queries.tolist(), keys.tolist(), "cuda")
    shapes = ((len(queries), 16, 128), (len(keys), groups, 128), (len(keys), groups, 128))
    query, key, value = inputs = tensors(*shapes, dtype=dtype, device="cuda")
    exact_query, exact_key, exact_value = exact = doubles_of(inputs)
    expected = segment_attention(
        exact_query, exact_key, exact_value, layout, causal=causal, backend="reference"
    )
    attend = lambda: segment_attention(query, key, value, layout, causal=causal, backend=backend)  # noqa: E731
    attend()  # makes the layout's tensors
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = attend()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    weights = torch.randn_like(ours)
    mine = torch.autograd.grad((ours * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights.double()).sum(), exact)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for one, other in zip((ours, *mine), (expected, *theirs), strict=True):
        assert (one.double() - other).norm() < tolerance * other.norm()
    assert not ours[[0, -1]].any()
