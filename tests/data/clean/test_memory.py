"""Cleaning keeps to its memory, however large the corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import clean_memory
from benchmarks.clean import OBJECT_STORE_MB


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_corpus_of_four_times_the_object_store_and_the_memory_passes_with_flat_memory(tmp_path: Path):
    found = clean_memory.measure(tmp_path, pictures=100, workers=1, limit_mb=160)
    assert found["corpus_mb"] >= 4 * (OBJECT_STORE_MB + 160)
    assert len(list((tmp_path / "out").glob("train-*.arrow"))) > 20
    private = [value for _, value in found["private_mb"]]
    half = len(private) // 2
    assert max(private[half:]) < max(private[:half]) + 64  # a shard holds 15 MB, the corpus 960
    assert max(value for _, value in found["object_store_mb"]) < 1
    assert found["spilled_mb"] == 0
