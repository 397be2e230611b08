"""Rows of clean artifacts, from the samples and media that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from casa_core.types import Sample
from pipelines.data.store.rows import CleanSample, Media


def row_of(sample: Sample, media: Sequence[Media], meta: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ``CLEAN_SCHEMA``."""
    return CleanSample(sample=sample, media=tuple(media), meta=dict(meta)).to_row()
