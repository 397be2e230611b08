"""How many records a corpus loses with the files that cannot be read: an estimate, held against the budget.

A file without a readable footer, or that breaks off, is one entry of the quarantine, whatever it held. What
is missing of it is estimated from the corpus's whole files of the same suffix: it should have at least their
median size, and as many records per byte as they have. So an empty file counts as a whole one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from casa_core.errors import DataError
from pipelines.data.read import Span
from pipelines.data.read.source.splits import suffix_of

_NAMED = 3
"""Lost files that an error names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Files that cannot be read, or not to their end.

    Attributes:
        files: Their names.
        records: Estimated records in what cannot be read, at least one per file.
        of: Records of the corpus that can be read.
    """

    files: tuple[str, ...] = ()
    records: int = 0
    of: int = 0

    def left_of(self, max_failures: float) -> float:
        """The share of the readable records that may still be rejected beside what is lost."""
        if not self.files:
            return max_failures
        return (max_failures * (self.of + self.records) - self.records) / max(self.of, 1)

    def check(self, source: str, max_failures: float) -> None:
        """Stops a run that would lose too much of a source before any of it is read.

        Raises:
            DataError: Names the files.
        """
        if self.records <= max_failures * (self.of + self.records):
            return
        more = len(self.files) - _NAMED
        names = ", ".join(self.files[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        lost = f"{len(self.files)} file{'s' if len(self.files) > 1 else ''}"
        share = f"about {self.records:,} of {self.of + self.records:,} records" if self.of else "every record"
        raise DataError(
            f"Source {source!r} loses {share} with {lost} that cannot be read.",
            f"At most {max_failures:.2%} may be left out. Damaged, cut or of another format: {names}.",
            "Fetch them again or delete them, or raise data.max_failures if losing them is acceptable.",
        )


def losses_of(spans: Sequence[Span], size_of: Callable[[str], int]) -> Losses:
    """Estimates what the spans of a corpus have lost.

    Args:
        spans: All spans of all splits.
        size_of: Bytes of a file.
    """
    lost = {span.file: span for span in spans if span.lost is not None}
    if not lost:
        return Losses(of=sum(span.records for span in spans))
    readable = defaultdict[str, int](int)
    for span in spans:
        readable[span.file] += span.records if span.lost is None else 0
    estimated = 0
    for name, span in lost.items():
        kind = suffix_of(name)
        whole = [file for file in readable if file not in lost and suffix_of(file) == kind]
        left = size_of(name) - (span.lost or 0)
        expected = max([size_of(name), *_median(map(size_of, whole))])
        known = whole or [file for file in lost if suffix_of(file) == kind]
        known_bytes = sum(size_of(file) - (lost[file].lost or 0 if file in lost else 0) for file in known)
        density = sum(readable[file] for file in known) / max(known_bytes, 1)
        estimated += max(1, round((expected - left) * density))
    return Losses(files=tuple(sorted(lost)), records=estimated, of=sum(readable.values()))


def _median(sizes: Iterable[int]) -> list[int]:
    found = list(sizes)
    return [int(median(found))] if found else []
