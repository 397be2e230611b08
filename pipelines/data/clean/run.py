"""The ``clean`` stage: a corpus in its published layout → verified samples with their bytes, in Arrow shards.

One Ray task writes each shard, from spans of the corpus that are planned beforehand. So the files do not
depend on the number of workers, no picture travels through the object store, and a killed run resumes with
the missing shards. Unusable records are listed in ``quarantine.parquet``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casa_core.errors import ClusterError, ConfigError
from casa_core.media.decode import MAX_PIXELS
from pipelines.dag.settings import read_settings, stage_settings
from pipelines.data.clean.records import DEFAULT_LIMITS, SHRUNK, PictureLimits, clean_record
from pipelines.data.read import Reader, Record, Span, open_reader
from pipelines.data.store.quarantine import QUARANTINE, Rejected, Tally, merge_quarantines, write_quarantine
from pipelines.data.store.ray_map import ray_map
from pipelines.data.store.rows import CLEAN_SCHEMA, Row
from pipelines.data.store.shard_task import REPORTS, write_once
from pipelines.data.store.shard_writing import CARD, write_json, write_shard
from pipelines.storage.atomic import remove_leftovers
from pipelines.storage.transfer import remove_tree
from pipelines.storage.uri import Folder

if TYPE_CHECKING:
    from pipelines.dag.context import StageContext

SPLITS = ("train", "test")
RECORDS_PER_SHARD = 4096
BYTES_PER_SHARD = 256 << 20
SMALL_SHARD = 8 << 20
SHARDS_AT_LEAST = 64
"""Shards that a corpus is cut into before they grow to full size: many workers end at about the same time."""


@stage_settings
class CleanSettings:
    """Settings of the clean stage; what a recipe does not give is None.

    Attributes:
        source: The data source's name in the recipe.
        reader: Name of its reader, a key of ``READERS``.
        options: The reader's own settings; the reader has the defaults of those that are absent.
        path: Folder or URI of the corpus; None where the corpus stage generates it.
        max_failures: Share of the records that may be quarantined.
        max_pixels, shrink_above: As in :class:`PictureLimits`.
    """

    source: str
    reader: str
    options: dict[str, Any]
    path: str | None
    max_failures: float
    max_pixels: int | None
    shrink_above: int | None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> CleanSettings:
        """The settings of a context, in which reader options lie among the others.

        A recipe leaves out what it does not give, so that a new option moves no fingerprint. ``raw`` is in
        the fingerprint alone: it identifies the corpus's files.
        """
        names = cls.__dataclass_fields__.keys() - {"options"}
        options = {name: value for name, value in values.items() if name not in names | {"raw"}}
        return read_settings(cls, {name: values.get(name) for name in names} | {"options": options})


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One shard to write.

    Attributes:
        split: ``train`` or ``test``.
        number: The shard's number in its split.
        spans: The corpus's spans whose records it holds.
        limits: Bounds on its pictures' sizes.
    """

    split: str
    number: int
    spans: tuple[Span, ...]
    limits: PictureLimits = DEFAULT_LIMITS

    @property
    def name(self) -> str:
        """The shard's file name without suffix."""
        return f"{self.split}-{self.number:05d}"

    @property
    def records(self) -> int:
        """Records of the spans, those that will be rejected included."""
        return sum(span.records for span in self.spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What became of a shard's records; the rejected ones themselves are in a table beside it.

    Attributes:
        rows: Rows written.
        bytes: Bytes of the media written.
        media: Pictures and videos written, by kind.
        shrunk: Pictures that were encoded anew, and the bytes they had before.
        rejected: The rejected records, counted.
    """

    split: str
    name: str
    rows: int
    bytes: int
    media: dict[str, int]
    shrunk: dict[str, int]
    rejected: Tally


def run_stage(context: StageContext) -> dict[str, Any]:
    """Cleans one source.

    Returns:
        Rows of each split, and the quarantined records by reason.

    Raises:
        DataError: Where more than ``max_failures`` of the records cannot be used.
    """
    settings = CleanSettings.read(context.settings)
    root = str(context.inputs.get("corpus", settings.path))
    reader = open_reader(settings.reader, root, settings.source, settings.options)
    limits = PictureLimits(max_pixels=settings.max_pixels or MAX_PIXELS, shrink_above=settings.shrink_above)
    tasks = plan(reader, limits)
    reports = _clean_shards(context, reader, tasks, settings.max_failures)
    card = _card(settings, tasks, reports)
    write_json(context.output / CARD, card)
    remove_tree(context.output / REPORTS)
    rows = {split: entry["rows"] for split, entry in card["splits"].items()}
    return {
        "headline": " · ".join([*(f"{count:,} {split}" for split, count in rows.items()), _set_aside(card)]),
        "rows": rows,
        "bytes": card["bytes"],
        "quarantined": card["quarantine"],
    }


def plan(reader: Reader, limits: PictureLimits = DEFAULT_LIMITS) -> list[ShardTask]:
    """Groups the corpus's spans into shards; same corpus, same plan.

    A shard has up to 4,096 records or about 256 MiB; in a corpus of less than 16 GiB its 64th part.

    Raises:
        ConfigError: Where there is nothing to train on.
    """
    tasks: list[ShardTask] = []
    for split in SPLITS:
        groups: list[list[Span]] = []
        records = size = 0
        spans = list(reader.spans(split))
        largest = _shard_bytes(sum(span.bytes for span in spans))
        for span in spans:
            full = records + span.records > RECORDS_PER_SHARD or size + span.bytes > largest
            if not groups or full:
                groups.append([])
                records = size = 0
            groups[-1].append(span)
            records, size = records + span.records, size + span.bytes
        tasks += [
            ShardTask(split=split, number=number, spans=tuple(group), limits=limits)
            for number, group in enumerate(groups)
        ]
    if not any(task.split == "train" for task in tasks):
        raise ConfigError(
            f"Source {reader.source!r} has no training records.",
            "No file of its layout was found there.",
            "Check the source's path and reader.",
        )
    return tasks


def _shard_bytes(total: int) -> int:
    return min(BYTES_PER_SHARD, max(total // SHARDS_AT_LEAST, SMALL_SHARD))


def clean_shard(reader: Reader, task: ShardTask, output: Folder) -> ShardReport:
    """Writes one shard, its table of rejected records and its report, unless an earlier attempt did.

    Raises:
        ClusterError: Where memory runs out: no record is quarantined for that.
    """
    values = write_once(output / REPORTS / f"{task.name}.json", lambda: _write_shard(reader, task, output))
    rejected = Tally.from_json(values.pop("rejected"))
    return ShardReport(**values, rejected=rejected)


def _write_shard(reader: Reader, task: ShardTask, output: Folder) -> dict[str, Any]:
    """Writes the shard and the table; returns the report as JSON."""
    rejected: list[Rejected] = []
    kinds: Counter[str] = Counter()
    shrunk = {"pictures": 0, "bytes_before": 0}
    size = 0

    def rows() -> Iterator[Row]:
        nonlocal size
        for record in _records(reader, task):
            clean = clean_record(record, task.limits) if isinstance(record, Record) else record
            if isinstance(clean, Rejected):
                rejected.append(clean)
                continue
            row = clean.to_row()
            size += _media_bytes(row)
            kinds.update(media.kind for media in clean.media)
            for replaced in clean.meta.get(SHRUNK, ()):
                shrunk["pictures"] += 1
                shrunk["bytes_before"] += replaced["bytes"]
            yield row

    try:
        count = write_shard(output / f"{task.name}.arrow", CLEAN_SCHEMA, rows(), size_of=_media_bytes)
    except MemoryError as error:
        raise ClusterError(
            f"A worker ran out of memory while it wrote the shard {task.name} of {reader.source!r}.",
            f"{type(error).__name__}: {error}.",
            "Lower the source's max_pixels, run fewer workers on a node, or give them more memory. Finished "
            "shards are kept.",
        ) from error
    assert count + len(rejected) == task.records, "every record is written or quarantined"
    write_quarantine(_rejected_table(output, task.name), rejected)
    return {
        "split": task.split,
        "name": task.name,
        "rows": count,
        "bytes": size,
        "media": dict(sorted(kinds.items())),
        "shrunk": shrunk,
        "rejected": Tally.of(rejected).to_json(),
    }


def _records(reader: Reader, task: ShardTask) -> Iterator[Record | Rejected]:
    """The records of a shard's spans; asserts that the reader yields each exactly once."""
    for span in task.spans:
        seen = bytearray(span.records)
        for record in reader.read(span):
            seen[record.row - span.start] += 1
            yield record
        assert seen.count(1) == span.records, f"{span.file}: every record from {span.start} on comes once"


def _clean_shards(
    context: StageContext, reader: Reader, tasks: Sequence[ShardTask], max_failures: float
) -> list[ShardReport]:
    """Cleans all shards on Ray, and stops as soon as more records are rejected than may be."""
    output = context.output
    (output / REPORTS).mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    total = sum(task.records for task in tasks)
    reports: list[ShardReport] = []
    rejected = Tally()
    done = 0
    work = [(reader, task, output) for task in tasks]
    try:
        for report in ray_map(_clean_shard, work, workers=context.placement["data"]["workers"]):
            reports.append(report)
            rejected.add(report.rejected)
            done += report.rows + report.rejected.total
            context.progress(done, total, f"{rejected.total} quarantined")
            rejected.check(reader.source, total, max_failures)
    finally:  # also where too many were rejected, so that they can be looked at
        tables = [_rejected_table(output, report.name) for report in reports if report.rejected.total]
        listed = merge_quarantines(output / QUARANTINE, tables)
    remove_leftovers(output)  # of workers that were lost in this run, whose shards others have written since
    assert listed == rejected.total, "every rejected record is listed"
    assert done == total, "every record is written or quarantined"
    return reports


def _clean_shard(work: tuple[Reader, ShardTask, Folder]) -> ShardReport:
    return clean_shard(*work)


def _card(
    settings: CleanSettings, tasks: Sequence[ShardTask], reports: Sequence[ShardReport]
) -> dict[str, Any]:
    splits = {}
    rejected = Tally()
    for split in SPLITS:
        own = [report for report in reports if report.split == split]
        splits[split] = {
            "records": sum(task.records for task in tasks if task.split == split),
            "rows": sum(report.rows for report in own),
            "quarantined": sum(report.rejected.total for report in own),
            "bytes": sum(report.bytes for report in own),
            "images": sum(report.media.get("image", 0) for report in own),
            "videos": sum(report.media.get("video", 0) for report in own),
            "shrunk": {
                name: sum(report.shrunk[name] for report in own) for name in ("pictures", "bytes_before")
            },
            "shards": [{"file": f"{report.name}.arrow", "rows": report.rows} for report in own],
        }
        for report in own:
            rejected.add(report.rejected)
    return {
        "schema": "clean/2",
        "source": settings.source,
        "reader": settings.reader,
        "bytes": sum(entry["bytes"] for entry in splits.values()),
        "splits": splits,
        "quarantine": rejected.by_reason(),
    }


def _set_aside(card: dict[str, Any]) -> str:
    """``2 quarantined (missing_image 1, truncated_image 1)``"""
    reasons = card["quarantine"]
    listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    return f"{sum(reasons.values())} quarantined" + (f" ({listed})" if listed else "")


def _media_bytes(row: Row) -> int:
    return sum(len(media["bytes"]) for media in row["media"])


def _rejected_table(output: Folder, name: str) -> Folder:
    return output / REPORTS / f"{name}.parquet"
