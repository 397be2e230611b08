"""Attention inside segments: both backends against a loop over queries and heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.errors import ConfigError
from casa_core.fusion.attention import Backend, Segments, segment_attention, segment_attention_weights
from tests.support.naive_attention import naive_attention

BACKENDS: tuple[Backend, ...] = ("padded", "reference")
SEGMENTS = 4
SIZE = 4


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def segments_of(queries: list[int], keys: list[int]) -> Segments | None:
    return Segments.build(np.array(queries, dtype=np.int64), np.array(keys, dtype=np.int64), SEGMENTS, "cpu")


def compare(
    queries: list[int], keys: list[int], heads: int, groups: int, backend: Backend, *, causal: bool
) -> None:
    """Values to 1e-12 and gradients to 1e-10 of the loop's."""
    query, key, value = inputs = tensors(
        (len(queries), heads, SIZE), (len(keys), groups, SIZE), (len(keys), groups, SIZE)
    )
    segments = segments_of(queries, keys)
    ours = segment_attention(query, key, value, segments, causal=causal, scale=0.7, backend=backend)
    expected = naive_attention(query, key, value, queries, keys, causal=causal, scale=0.7)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    if segments is None:
        return
    (weights,) = tensors(tuple(ours.shape))
    for mine, theirs in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(
    queries=st.lists(st.integers(-1, SEGMENTS - 1), min_size=1, max_size=9),
    keys=st.lists(st.integers(0, SEGMENTS - 1), min_size=1, max_size=9),
    heads=st.sampled_from([(1, 1), (4, 2), (2, 2), (3, 1)]),
)
def test_queries_attend_to_exactly_the_keys_of_their_segment(
    backend: Backend, queries: list[int], keys: list[int], heads: tuple[int, int]
):
    compare(queries, keys, *heads, backend, causal=False)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=SEGMENTS),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
)
def test_packed_documents_attend_causally_to_themselves(
    backend: Backend, lengths: list[int], heads: tuple[int, int]
):
    documents = [number for number, length in enumerate(lengths) for _ in range(length)]
    compare(documents, documents, *heads, backend, causal=True)


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
    segments = segments_of([0, 0, 0], [0, 0, 0])
    default = segment_attention(query, key, value, segments, causal=False, backend=backend)
    halved = segment_attention(query, key, value, segments, causal=False, scale=SIZE**-0.5, backend=backend)
    assert torch.equal(default, halved)


def test_both_backends_agree_in_single_precision_at_training_size():
    lengths = [50, 1, 120, 7]
    keys = [number for number, count in enumerate((64, 16, 200, 0)) for _ in range(count)]
    queries = [number for number, length in enumerate(lengths) for _ in range(length)]
    query, key, value = tensors(
        (len(queries), 8, 32), (len(keys), 4, 32), (len(keys), 4, 32), dtype=torch.float32
    )
    segments = segments_of(queries, keys)
    padded, dense = (
        segment_attention(query, key, value, segments, causal=False, backend=backend) for backend in BACKENDS
    )
    torch.testing.assert_close(padded, dense, rtol=1e-5, atol=1e-5)


def test_the_weights_of_the_reference_are_those_it_mixes_values_with_and_obey_a_mask_of_ones_own():
    queries, keys = [0, -1, 1, 1, 0], [0, 1, 1, 0, 0, -1, 1]
    query, key, value = tensors((5, 4, SIZE), (7, 2, SIZE), (7, 2, SIZE))
    segments = segments_of(queries, keys)
    allowed = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    allowed[3] = False
    for mask in (None, allowed):
        weights = segment_attention_weights(query, key, segments, causal=True, allowed_TN=mask)
        ours = segment_attention(
            query, key, value, segments, causal=True, backend="reference", allowed_TN=mask
        )
        torch.testing.assert_close(
            torch.einsum("htn,nhd->thd", weights, value.repeat_interleave(2, dim=1)), ours
        )
    assert not weights[:, ~allowed].any()
    assert not weights[:, [1, 3]].any()
    torch.testing.assert_close(weights[:, 2].sum(-1), torch.ones(4, dtype=torch.float64))
    with pytest.raises(ConfigError, match="reference"):
        segment_attention(query, key, value, segments, causal=True, allowed_TN=allowed)
