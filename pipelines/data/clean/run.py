"""The ``clean`` stage: a corpus in its published layout → verified samples with their bytes, in Arrow shards.

Each shard is written by one Ray task from spans of the corpus that were planned beforehand. So the files are
the same whatever the number of workers, no picture travels through the object store, and a run that was
killed goes on with the shards that are missing. Unusable records are listed in ``quarantine.parquet``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from casa_core.errors import ClusterError, ConfigError
from casa_core.media.decode import MAX_PIXELS
from pipelines.data.clean.records import DEFAULT_LIMITS, SHRUNK, Limits, clean_record
from pipelines.data.read import Reader, Record, Span, open_reader
from pipelines.data.store.quarantine import QUARANTINE, Rejected, Tally, merge_quarantines, write_quarantine
from pipelines.data.store.ray_map import ray_map
from pipelines.data.store.rows import CLEAN_SCHEMA, Row
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
_REPORTS = ".reports"
_STAGE_KEYS = frozenset({"source", "reader", "path", "raw", "max_failures", "max_pixels", "shrink_above"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One shard to write: the spans whose records it holds.

    Attributes:
        split: ``train`` or ``test``.
        number: Of the shard in its split.
        limits: Of its pictures.
    """

    split: str
    number: int
    spans: tuple[Span, ...]
    limits: Limits = DEFAULT_LIMITS

    @property
    def name(self) -> str:
        """The shard's file name without suffix."""
        return f"{self.split}-{self.number:05d}"

    @property
    def records(self) -> int:
        """Records the shard is made of, those that will be rejected included."""
        return sum(span.records for span in self.spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What became of a shard's records; the rejected ones themselves lie in a table beside it.

    Attributes:
        rows: Written.
        bytes: Of the media written.
        media: How many pictures and videos, by kind.
        shrunk: Pictures that were encoded anew, and the bytes they had before.
        rejected: The others, counted.
    """

    split: str
    name: str
    rows: int
    bytes: int
    media: dict[str, int]
    shrunk: dict[str, int]
    rejected: Tally


def run_stage(context: StageContext) -> dict[str, Any]:
    """Cleans ``what.source``.

    Returns:
        Rows of each split, and the quarantined records by reason.

    Raises:
        DataError: Where more than ``what.max_failures`` of the records cannot be used.
    """
    what = context.settings
    root = str(context.inputs["corpus"]) if "corpus" in context.inputs else what["path"]
    options = {name: value for name, value in what.items() if name not in _STAGE_KEYS}
    reader = open_reader(what["reader"], root, what["source"], options)
    limits = Limits(max_pixels=what.get("max_pixels") or MAX_PIXELS, shrink_above=what.get("shrink_above"))
    tasks = plan(reader, limits)
    reports = _work_off(context, reader, tasks)
    card = _card(what, tasks, reports)
    write_json(context.output / CARD, card)
    remove_tree(context.output / _REPORTS)
    rows = {split: entry["rows"] for split, entry in card["splits"].items()}
    return {
        "headline": " · ".join([*(f"{count:,} {split}" for split, count in rows.items()), _set_aside(card)]),
        "rows": rows,
        "bytes": card["bytes"],
        "quarantined": card["quarantine"],
    }


def plan(reader: Reader, limits: Limits = DEFAULT_LIMITS) -> list[ShardTask]:
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
    """Writes one shard and, last, a report of it; where that report exists already, nothing is done.

    Raises:
        ClusterError: Where memory runs out: no record is set aside for that.
    """
    report_path = output / _REPORTS / f"{task.name}.json"
    if report_path.is_file():
        return _report_from_json(report_path.read_text(encoding="utf-8"))
    rejected: list[Rejected] = []
    kinds: dict[str, int] = {}
    shrunk = {"pictures": 0, "bytes_before": 0}
    size = 0

    def rows() -> Iterator[Row]:
        nonlocal size
        for record in _records(reader, task):
            result = clean_record(record, task.limits) if isinstance(record, Record) else record
            if isinstance(result, Rejected):
                rejected.append(result)
                continue
            size += _media_bytes(result)
            for media in result["media"]:
                kinds[media["kind"]] = kinds.get(media["kind"], 0) + 1
            for replaced in _replaced(result):
                shrunk["pictures"] += 1
                shrunk["bytes_before"] += replaced["bytes"]
            yield result

    try:
        count = write_shard(output / f"{task.name}.arrow", CLEAN_SCHEMA, rows(), size_of=_media_bytes)
    except MemoryError as error:
        raise ClusterError(
            f"A worker ran out of memory while it wrote the shard {task.name} of {reader.source!r}.",
            f"{type(error).__name__}: {error}",
            "Lower the source's max_pixels, run fewer workers on a node, or give them more memory. Finished "
            "shards are kept.",
        ) from error
    assert count + len(rejected) == task.records, "every record is written or quarantined"
    write_quarantine(_table_of(output, task.name), rejected)
    report = ShardReport(
        split=task.split,
        name=task.name,
        rows=count,
        bytes=size,
        media=dict(sorted(kinds.items())),
        shrunk=shrunk,
        rejected=Tally.of(rejected),
    )
    write_json(report_path, _report_to_json(report))
    return report


def _records(reader: Reader, task: ShardTask) -> Iterator[Record | Rejected]:
    """The records of a shard's spans, each of which must come once."""
    for span in task.spans:
        seen = bytearray(span.records)
        for record in reader.read(span):
            seen[record.row - span.start] += 1
            yield record
        assert seen.count(1) == span.records, f"{span.file}: every record from {span.start} on comes once"


def _work_off(context: StageContext, reader: Reader, tasks: Sequence[ShardTask]) -> list[ShardReport]:
    """Cleans all shards on Ray, and stops as soon as the failure budget is spent."""
    what, output = context.settings, context.output
    (output / _REPORTS).mkdir(parents=True, exist_ok=True)
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
            rejected.check(what["source"], total, what["max_failures"])
    finally:  # also where the budget is spent: what was it?
        tables = [_table_of(output, report.name) for report in reports if report.rejected.total]
        listed = merge_quarantines(output / QUARANTINE, tables)
    remove_leftovers(output)  # of workers that died in this run, whose shards others have written since
    assert listed == rejected.total, "every rejected record is listed"
    assert done == total, "every record is written or quarantined"
    return reports


def _clean_shard(work: tuple[Reader, ShardTask, Folder]) -> ShardReport:
    return clean_shard(*work)


def _card(what: dict[str, Any], tasks: Sequence[ShardTask], reports: Sequence[ShardReport]) -> dict[str, Any]:
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
        "source": what["source"],
        "reader": what["reader"],
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


def _replaced(row: Row) -> list[dict[str, Any]]:
    return json.loads(row["meta"]).get(SHRUNK, []) if SHRUNK in row["meta"] else []


def _table_of(output: Folder, name: str) -> Folder:
    return output / _REPORTS / f"{name}.parquet"


def _report_to_json(report: ShardReport) -> dict[str, Any]:
    tally = {"reasons": report.rejected.by_reason(), "examples": report.rejected.examples}
    return asdict(replace(report, rejected=Tally())) | {"rejected": tally}


def _report_from_json(text: str) -> ShardReport:
    values = json.loads(text)
    rejected = values.pop("rejected")
    return ShardReport(
        **values, rejected=Tally(reasons=Counter(rejected["reasons"]), examples=rejected["examples"])
    )
