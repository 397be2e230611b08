"""Rejected records: what they are, where they lie, why they are left out. Nothing is replaced silently."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from casa_core.errors import DataError

QUARANTINE = "quarantine.parquet"
QUARANTINE_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("sample_id", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("sha256", pa.string()),
    ],
    metadata={"casa.schema": "quarantine/1"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """One record that is left out.

    Attributes:
        source: Name of the data source in the recipe.
        file: The file it was read from, relative to the source's root.
        row: Its number in that file, from 0.
        sample_id: Unique within the source.
        reason: A short stable slug, for example ``truncated_image``.
        detail: What exactly was found.
        sha256: Of the offending bytes; empty where there are none.
    """

    source: str
    file: str
    row: int
    sample_id: str
    reason: str
    detail: str
    sha256: str = ""


def write_quarantine(path: Path, rejected: Iterable[Rejected]) -> None:
    """Writes the table, ordered by file and row, replacing an earlier one atomically."""
    ordered = sorted(rejected, key=lambda entry: (entry.source, entry.file, entry.row))
    table = pa.Table.from_pylist([asdict(entry) for entry in ordered], schema=QUARANTINE_SCHEMA)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def read_quarantine(path: Path) -> list[Rejected]:
    """The entries of a table that ``write_quarantine`` wrote."""
    return [Rejected(**row) for row in pq.read_table(path, schema=QUARANTINE_SCHEMA).to_pylist()]


def count_reasons(rejected: Iterable[Rejected]) -> dict[str, int]:
    """How many entries have each reason, by name."""
    return dict(sorted(Counter(entry.reason for entry in rejected).items()))


def check_budget(source: str, rejected: Sequence[Rejected], records: int, max_failures: float) -> None:
    """Stops a run in which too many records of a source were rejected.

    Args:
        source: Name of the source.
        rejected: What was rejected so far.
        records: Records of the source in all.
        max_failures: Share of them that may be rejected.

    Raises:
        DataError: With the counts by reason and the first examples.
    """
    if len(rejected) <= max_failures * records:
        return
    reasons = ", ".join(f"{count} x {reason}" for reason, count in count_reasons(rejected).items())
    examples = "; ".join(f"{entry.file} row {entry.row}: {entry.detail}" for entry in rejected[:3])
    raise DataError(
        f"Source {source!r} has too many unusable records: {len(rejected)} of {records}.",
        f"At most {max_failures:.2%} may be left out. Found {reasons}. For example {examples}",
        "Repair the source, or raise data.max_failures if losing them is acceptable.",
    )
