"""The quarantine: a table of rejected records with source, row and reason, and counts by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from casa_core.errors import DataError
from pipelines.data.store.shard_pipeline import REPORTS
from pipelines.storage.atomic import create
from pipelines.storage.uri import Folder

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
REJECT = "reject"
REJECT_FIELD = pa.field(REJECT, pa.struct(QUARANTINE_SCHEMA))
"""A column beside those of an artifact's rows: set where there is no row, but a rejected record."""
_ROWS_PER_GROUP = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """One rejected record.

    Attributes:
        source: Name of the data source in the recipe.
        file: The file it was read from, relative to the source's root.
        row: Its number in that file, from 0.
        sample_id: Unique within the source.
        reason: A short stable slug, for example ``truncated_image``.
        detail: What exactly was found.
        sha256: Hash of the offending bytes; empty where there are none.
    """

    source: str
    file: str
    row: int
    sample_id: str
    reason: str
    detail: str
    sha256: str = ""


@dataclass(slots=True)
class Tally:
    """Counts of rejected records: all that a run over millions of records keeps of them in memory.

    Attributes:
        reasons: How many have each reason.
        examples: The first record of each reason, in words.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, rejected: Iterable[Rejected]) -> Tally:
        """Counts a list."""
        tally = cls()
        for entry in rejected:
            tally.reasons[entry.reason] += 1
            tally.examples.setdefault(entry.reason, f"{entry.file} row {entry.row}: {entry.detail}")
        return tally

    @property
    def total(self) -> int:
        """How many were counted."""
        return self.reasons.total()

    def add(self, other: Tally) -> None:
        """Counts those of another tally, which come after the ones counted here."""
        self.reasons.update(other.reasons)
        self.examples = other.examples | self.examples

    def to_json(self) -> dict[str, Any]:
        """As a shard task's report holds it."""
        return {"reasons": self.by_reason(), "examples": self.examples}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Tally:
        """The tally that ``to_json`` gave."""
        return cls(Counter(values["reasons"]), values["examples"])

    def by_reason(self) -> dict[str, int]:
        """The counts, by name of the reason."""
        return dict(sorted(self.reasons.items()))

    def check(
        self, source: str, records: int, max_failures: float, *, remedy: str = "Repair the source"
    ) -> None:
        """Stops a run in which too many records of a source were rejected.

        ``max_failures`` is the share of all its ``records`` that may be; ``remedy`` is what else helps than
        to raise it.

        Raises:
            DataError: With the counts by reason, the most frequent first and with an example.
        """
        if self.total <= max_failures * records:
            return
        ranked = sorted(self.reasons.items(), key=lambda found: (-found[1], found[0]))
        reasons = ", ".join(f"{count} x {reason}" for reason, count in ranked)
        raise DataError(
            f"Source {source!r} has too many unusable records: {self.total} of {records}.",
            f"At most {max_failures:.2%} may be left out. Found {reasons}. "
            f"For example, {ranked[0][0]}: {self.examples[ranked[0][0]]}.",
            f"{remedy}, or raise data.max_failures if losing them is acceptable.",
        )


def write_quarantine(path: Folder, rejected: Iterable[Rejected]) -> None:
    """Writes the table, ordered by file and row, replacing an earlier one atomically."""
    ordered = sorted(rejected, key=lambda entry: (entry.source, entry.file, entry.row))
    with create(path) as output:
        pq.write_table(_table(ordered), output, compression="zstd")


def split_rejected(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[Rejected]]:
    """The rows proper, and the rejected records that travel among them in the column ``REJECT``."""
    rejected = batch.column(REJECT)
    rows = batch.drop_columns([REJECT])
    if rejected.null_count == len(batch):
        return rows, []
    return rows.filter(rejected.is_null()), [Rejected(**entry) for entry in rejected.drop_null().to_pylist()]


def rejected_table(output: Folder, shard: str) -> Folder:
    """The table of the records of one shard that were rejected, until they are merged."""
    return output / REPORTS / f"{shard}.parquet"


def merge_quarantines(path: Folder, parts: Iterable[Folder]) -> int:
    """Writes one table of the rows of several, in order, holding one part and one row group at a time.

    Returns:
        How many rows it has.
    """
    rows = 0
    with create(path) as output, pq.ParquetWriter(output, QUARANTINE_SCHEMA, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        for part in parts:
            waiting.append(_read(part))
            rows += waiting[-1].num_rows
            # Parts are small, and a row group each would make a file of little else.
            if sum(table.num_rows for table in waiting) >= _ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(waiting), row_group_size=_ROWS_PER_GROUP)
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=_ROWS_PER_GROUP)
    return rows


def read_quarantine(path: Folder) -> list[Rejected]:
    """The entries of a table that ``write_quarantine`` wrote."""
    return [Rejected(**row) for row in _read(path).to_pylist()]


def _table(rejected: Sequence[Rejected]) -> pa.Table:
    rows: list[dict[str, Any]] = [asdict(entry) for entry in rejected]
    return pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)


def _read(path: Folder) -> pa.Table:
    return pq.read_table(pa.BufferReader(path.read_bytes())).cast(QUARANTINE_SCHEMA)
