"""The text KV's room: it grows ahead of the text, but not far."""

from __future__ import annotations

import torch

from casa_core.decoding.kv_cache import TextCache

A_SLOT = 2 * 2 * 4 * 4  # keys and values, two heads of size four, float32


def slots_held(cache: TextCache, tokens: int) -> list[int]:
    """SlotPool held after each of so many tokens, one by one."""
    held = []
    for _ in range(tokens):
        cache.expect(1, torch.device("cpu"))
        cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), layer_idx=0)
        cache.lengths[0] += 1
        held.append(cache.nbytes // A_SLOT)
    return held


def test_at_most_a_fifth_of_a_long_texts_memory_is_spare():
    held = slots_held(TextCache(1), 3000)
    for tokens, slots in enumerate(held, start=1):
        assert tokens <= slots <= tokens * 5 / 4 + TextCache.block


def test_rows_grow_a_few_times_not_once_a_token():
    assert len(set(slots_held(TextCache(1), 3000))) < 20


def test_a_bounded_texts_memory_ends_at_its_bounds():
    assert max(slots_held(TextCache(1, limit=1000), 1000)) == 1024  # whole blocks of 64
    assert max(slots_held(TextCache(1), 1000)) > 1024


def test_what_was_written_survives_growth():
    cache = TextCache(1)
    for token in range(300):
        cache.expect(1, torch.device("cpu"))
        keys = torch.full((1, 2, 1, 4), float(token))
        held, _ = cache.update(keys, keys, layer_idx=0)
        cache.lengths[0] += 1
    torch.testing.assert_close(held[0, 0, :, 0], torch.arange(300.0))
