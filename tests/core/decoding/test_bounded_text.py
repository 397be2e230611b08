"""LRUCache text KV: a stream that forgets its oldest words, against one that keeps unturned keys."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casa_core.decoding.bounds import TextBounds
from casa_core.decoding.kv_batch import KVBatch, TokenChunk
from casa_core.errors import ConfigError, DataError
from tests.support.core.fusions import BACKBONES
from tests.support.core.layouts import VOCABULARY
from tests.support.core.models import WIDTH, BackboneName, sizes_of, small_model, weights_of
from tests.support.naive.stream import NaiveBoundedStream

PIECES = st.lists(st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=5), min_size=10, max_size=25)


@pytest.mark.parametrize("backbone", BACKBONES)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(pieces=PIECES)
def test_a_bounded_stream_hears_what_one_that_turns_its_keys_anew_hears(
    backbone: BackboneName, pieces: list[list[int]]
):
    model = small_model(torch.float32, backbone=backbone)
    bounds = TextBounds(sinks=3, recent=8, slack=4)
    naive = NaiveBoundedStream(weights_of(model), sizes_of(model), sinks=3, recent=8, slack=4)
    stream = KVBatch(model, 1, bounds)
    with torch.no_grad():
        for piece in pieces:
            heard = stream.extend([TokenChunk(piece)])[0].double()
            torch.testing.assert_close(heard, naive.read(piece), rtol=0, atol=2e-4)
    assert stream.text.lengths[0] == len(naive.keys[0]) <= bounds.limit
    assert stream.lengths[0] == sum(map(len, pieces))


def seen(ids: list[int], seed: int) -> TokenChunk:
    """Tokens with a picture before the last."""
    rows, columns = ((2, 3), (1, 2), (2, 2))[seed % 3]
    image = torch.randn(rows * columns, WIDTH, generator=torch.Generator().manual_seed(seed))
    return TokenChunk(ids, [len(ids) - 1], [image], [(rows, columns)], [rows * columns])


PICTURES = [[3 + n % 5, 1 + n, 2] if n % 2 else [4 + n] for n in range(24)]
"""Pieces of a stream; every second one brings a picture."""


@pytest.mark.parametrize("kind", ["cross_attention", "casa"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_pictures_that_add_nothing_change_nothing_of_what_is_remembered_and_forgotten(
    backbone: BackboneName, kind: str
):
    model = small_model(torch.float32, backbone=backbone, kind=kind, init="zero_output")
    model.initialize_fusion()
    bounds = TextBounds(sinks=3, recent=8, slack=4)
    naive = NaiveBoundedStream(weights_of(model), sizes_of(model), sinks=3, recent=8, slack=4)
    stream = KVBatch(model, 1, bounds)
    with torch.no_grad():
        for n, piece in enumerate(PICTURES):
            heard = stream.extend([seen(piece, n) if n % 2 else TokenChunk(piece)])[0].double()
            torch.testing.assert_close(heard, naive.read(piece), rtol=0, atol=2e-4)
    assert stream.states[0].dropped > 20


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_windows_hold_outlasts_the_words_that_are_forgotten(backbone: BackboneName):
    """With every self-attention replaced nothing is looked up in the text KV, so its bounds must not show."""
    model = small_model(torch.float32, backbone=backbone, kind="casa", placement="replace", layers=(0, 1))
    bounded = KVBatch(model, 1, TextBounds(sinks=1, recent=4, slack=1))
    endless = KVBatch(model, 1)
    for n, piece in enumerate(PICTURES):
        step = seen(piece, n) if n % 3 == 1 else TokenChunk(piece)
        torch.testing.assert_close(bounded.extend([step]), endless.extend([step]), rtol=0, atol=1e-6)
    assert bounded.states[0].dropped > 30
    assert bounded.lengths == endless.lengths


def test_rows_forget_each_on_its_own():
    model = small_model(torch.float32)
    bounds = TextBounds(sinks=2, recent=6, slack=2)
    rows = [[[1 + (n * step) % (VOCABULARY - 1)] * (1 + n % 3) for n in range(20)] for step in (3, 7)]
    alone = [KVBatch(model, 1, bounds) for _ in rows]
    expected = [
        [own.extend([TokenChunk(piece)])[0] for piece in row] for own, row in zip(alone, rows, strict=True)
    ]
    together = KVBatch(model, 2, bounds)
    for n in range(20):
        heard = together.extend(
            [TokenChunk(row[n]) if n % 4 != which else None for which, row in enumerate(rows)]
        )
        for which, row in enumerate(rows):
            if n % 4 == which:  # this row's turn comes late
                late: list[TokenChunk | None] = [None, None]
                late[which] = TokenChunk(row[n])
                heard = torch.where(torch.tensor([[which == 0], [which == 1]]), together.extend(late), heard)
        for which in range(2):
            torch.testing.assert_close(heard[which], expected[which][n], rtol=0, atol=1e-5)


def test_memory_stays_flat_for_ever():
    model = small_model(torch.float32)
    stream = KVBatch(model, 1, TextBounds(sinks=4, recent=32, slack=8))
    held = set()
    for n in range(600):
        stream.extend([TokenChunk([1 + n % (VOCABULARY - 1)])])
        held.add(stream.text.nbytes)
    assert len(held) == 1, "one block of slots is allocated once"
    assert stream.text.lengths[0] <= 44
    assert stream.states[0].position <= 44, "positions count inside the cache"


def test_more_text_at_once_than_the_bounds_keep_is_refused():
    stream = KVBatch(small_model(torch.float32), 1, TextBounds(sinks=2, recent=4, slack=2))
    stream.extend([TokenChunk([1] * 6)])
    with pytest.raises(DataError, match="5 tokens at once do not fit a text KV of 4 recent tokens") as caught:
        stream.extend([TokenChunk([1] * 5)])
    assert "Raise the bounds' `recent`" in caught.value.remedy


@pytest.mark.parametrize("fusion", [{"kind": "insertion"}, {"positions": "global"}])
def test_bounds_that_would_move_image_positions_are_refused(fusion: dict[str, str]):
    with pytest.raises(ConfigError, match="cannot be bounded"):
        KVBatch(small_model(torch.float32, **fusion), 1, TextBounds())


def test_bounds_name_what_is_wrong():
    with pytest.raises(ConfigError, match="recent = 0 is too small"):
        TextBounds(recent=0)
