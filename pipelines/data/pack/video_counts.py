"""Counts of what was done to fit videos to their budget: what a pack artifact's card states of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from casa_core.types import Sample, Text
from pipelines.data.store.rows import Row, is_stream


@dataclass(slots=True)
class VideoCounts:
    """Videos of a source, each counted once, whatever the mixture.

    Attributes:
        videos: Samples with a video that were not quarantined.
        smaller: Those whose frames were made smaller for the budget.
        sizes: How many of these have frames of each size, ``width x height``.
        fewer: Those of which frames were left out.
        least_kept: The smallest share of its frames that one of these keeps.
        cut: Live streams that were cut into windows.
        windows: How many windows that gave.
        silent: Live streams in which nothing is said.
    """

    videos: int = 0
    smaller: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    fewer: int = 0
    least_kept: float = 1.0
    cut: int = 0
    windows: int = 0
    silent: int = 0

    def count(self, sample: Sample, rows: Sequence[Row]) -> None:
        """Count a sample that was encoded as ``rows`` of ``ENCODED_SCHEMA``."""
        first = rows[0]
        if not first["video"]:
            return
        self.videos += 1
        bounded = [image for image in first["images"] if image["most_tokens"] is not None]
        if bounded:
            self.smaller += 1
            self._add_sizes({f"{bounded[0]['width']} x {bounded[0]['height']}": 1})
        if first["frames"] > len(first["images"]):
            self.fewer += 1
            self.least_kept = min(self.least_kept, len(first["images"]) / first["frames"])
        if is_stream(sample):
            said = any(isinstance(part, Text) and part.trained and part.text.strip() for part in sample.parts)
            self.silent += not said
            self.cut += len(rows) > 1
            self.windows += len(rows) if len(rows) > 1 else 0

    def add(self, other: VideoCounts) -> None:
        """Count those of another source or task, too."""
        for name in ("videos", "smaller", "fewer", "cut", "windows", "silent"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.least_kept = min(self.least_kept, other.least_kept)
        self._add_sizes(other.sizes)

    def _add_sizes(self, sizes: dict[str, int]) -> None:
        counts = {size: self.sizes.get(size, 0) + sizes.get(size, 0) for size in {*self.sizes, *sizes}}
        self.sizes = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
