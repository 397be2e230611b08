"""The ``clean`` stage: a corpus in its published layout → verified samples with their bytes, in Arrow shards.

Each shard is written by one Ray task from spans of the corpus that were planned beforehand. So the files are
the same whatever the number of workers, no picture travels through the object store, and a run that was
killed goes on with the shards that are missing. Unusable records are listed in ``quarantine.parquet``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casa_core.errors import ConfigError, MediaError
from casa_core.media import VideoFrames, decode_image
from casa_core.types import Image
from pipelines.data.quarantine import QUARANTINE, Rejected, check_budget, count_reasons, write_quarantine
from pipelines.data.ray_map import ray_map
from pipelines.data.readers import Reader, Record, Span, open_reader
from pipelines.data.rows import CLEAN_SCHEMA, Media, Row, row_from_sample
from pipelines.data.store import CARD, remove_leftovers, write_json, write_shard

if TYPE_CHECKING:
    from pipelines.dag.context import StageContext

SPLITS = ("train", "test")
RECORDS_PER_SHARD = 4096
BYTES_PER_SHARD = 256 << 20
_REPORTS = ".reports"
_STAGE_KEYS = frozenset({"source", "reader", "path", "raw", "max_failures"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One shard to write: the spans whose records it holds.

    Attributes:
        split: ``train`` or ``test``.
        number: Of the shard in its split.
    """

    split: str
    number: int
    spans: tuple[Span, ...]

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
    """What became of a shard's records.

    Attributes:
        rows: Written.
        bytes: Of the media written.
        media: How many pictures and videos, by kind.
        rejected: The others.
    """

    split: str
    name: str
    rows: int
    bytes: int
    media: dict[str, int]
    rejected: tuple[Rejected, ...]


def run_stage(context: StageContext) -> dict[str, Any]:
    """Cleans ``what.source``.

    Returns:
        Rows of each split, and the quarantined records by reason.

    Raises:
        DataError: Where more than ``what.max_failures`` of the records cannot be used.
    """
    what = context.what
    root = str(context.inputs["corpus"]) if "corpus" in context.inputs else what["path"]
    options = {name: value for name, value in what.items() if name not in _STAGE_KEYS}
    reader = open_reader(what["reader"], root, what["source"], options)
    tasks = plan(reader)
    reports = _work_off(context, reader, tasks)
    card = _card(what, tasks, reports)
    write_json(context.output / CARD, card)
    shutil.rmtree(context.output / _REPORTS)
    rows = {split: entry["rows"] for split, entry in card["splits"].items()}
    return {
        "headline": " · ".join([*(f"{count:,} {split}" for split, count in rows.items()), _set_aside(card)]),
        "rows": rows,
        "bytes": card["bytes"],
        "quarantined": card["quarantine"],
    }


def plan(reader: Reader) -> list[ShardTask]:
    """Groups the corpus's spans into shards of up to 4,096 records or about 256 MiB; same corpus, same plan.

    Raises:
        ConfigError: Where there is nothing to train on.
    """
    tasks: list[ShardTask] = []
    for split in SPLITS:
        groups: list[list[Span]] = []
        records = size = 0
        for span in reader.spans(split):
            full = records + span.records > RECORDS_PER_SHARD or size + span.bytes > BYTES_PER_SHARD
            if not groups or full:
                groups.append([])
                records = size = 0
            groups[-1].append(span)
            records, size = records + span.records, size + span.bytes
        tasks += [
            ShardTask(split=split, number=number, spans=tuple(group)) for number, group in enumerate(groups)
        ]
    if not any(task.split == "train" for task in tasks):
        raise ConfigError(
            f"Source {reader.source!r} has no training records.",
            "No file of its layout was found there.",
            "Check the source's path and reader.",
        )
    return tasks


def clean_shard(reader: Reader, task: ShardTask, output: Path) -> ShardReport:
    """Writes one shard and, last, a report of it; where that report exists already, nothing is done."""
    report_path = output / _REPORTS / f"{task.name}.json"
    if report_path.is_file():
        return _report_from_json(report_path.read_text(encoding="utf-8"))
    rejected: list[Rejected] = []
    sizes: list[int] = []
    kinds: dict[str, int] = {}

    def rows() -> Iterator[Row]:
        for span in task.spans:
            for record in reader.read(span):
                result = clean_record(record) if isinstance(record, Record) else record
                if isinstance(result, Rejected):
                    rejected.append(result)
                    continue
                for media in result["media"]:
                    sizes.append(len(media["bytes"]))
                    kinds[media["kind"]] = kinds.get(media["kind"], 0) + 1
                yield result

    count = write_shard(output / f"{task.name}.arrow", CLEAN_SCHEMA, rows(), size_of=_media_bytes)
    assert count + len(rejected) == task.records, "every record is written or quarantined"
    report = ShardReport(
        split=task.split,
        name=task.name,
        rows=count,
        bytes=sum(sizes),
        media=dict(sorted(kinds.items())),
        rejected=tuple(rejected),
    )
    write_json(report_path, asdict(report))
    return report


def clean_record(record: Record) -> Row | Rejected:
    """Decodes every picture, and every video at all times used: a row of the clean artifact, or why not."""
    media: list[Media] = []
    for number, raw in enumerate(record.media):
        digest = hashlib.sha256(raw.data).hexdigest()
        try:
            height, width = (
                decode_image(raw.data).shape[:2]
                if raw.kind == "image"
                else _verify_video(raw.data, _timestamps(record, number))
            )
        except MediaError as error:
            return Rejected(
                source=record.sample.source,
                file=record.file,
                row=record.row,
                sample_id=record.sample.sample_id,
                reason=error.reason,
                detail=f"{raw.name}: {error.what} {error.why}".strip(),
                sha256=digest,
            )
        media.append(Media(kind=raw.kind, data=raw.data, width=width, height=height, sha256=digest))
    return row_from_sample(record.sample, media, record.meta)


def _verify_video(data: bytes, timestamps: Sequence[float]) -> tuple[int, int]:
    with VideoFrames(data) as video:
        frames = video.at(timestamps)
        return frames[0].shape[:2] if frames else (video.height, video.width)


def _timestamps(record: Record, media: int) -> list[float]:
    return [
        part.timestamp
        for part in record.sample.parts
        if isinstance(part, Image) and part.media == media and part.timestamp is not None
    ]


def _work_off(context: StageContext, reader: Reader, tasks: Sequence[ShardTask]) -> list[ShardReport]:
    """Cleans all shards on Ray, and stops as soon as the failure budget is spent."""
    what, output = context.what, context.output
    (output / _REPORTS).mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    total = sum(task.records for task in tasks)
    reports: list[ShardReport] = []
    rejected: list[Rejected] = []
    done = 0
    work = [(reader, task, output) for task in tasks]
    try:
        for report in ray_map(_clean_shard, work, workers=context.where["data"]["workers"]):
            reports.append(report)
            rejected += report.rejected
            done += report.rows + len(report.rejected)
            context.progress(done, total, f"{len(rejected)} quarantined")
            check_budget(what["source"], rejected, total, what["max_failures"])
    finally:
        write_quarantine(output / QUARANTINE, rejected)  # also where the budget is spent: what was it?
    assert done == total, "every record is written or quarantined"
    return reports


def _clean_shard(work: tuple[Reader, ShardTask, Path]) -> ShardReport:
    return clean_shard(*work)


def _card(what: dict[str, Any], tasks: Sequence[ShardTask], reports: Sequence[ShardReport]) -> dict[str, Any]:
    splits = {}
    for split in SPLITS:
        own = [report for report in reports if report.split == split]
        splits[split] = {
            "records": sum(task.records for task in tasks if task.split == split),
            "rows": sum(report.rows for report in own),
            "quarantined": sum(len(report.rejected) for report in own),
            "bytes": sum(report.bytes for report in own),
            "images": sum(report.media.get("image", 0) for report in own),
            "videos": sum(report.media.get("video", 0) for report in own),
            "shards": [{"file": f"{report.name}.arrow", "rows": report.rows} for report in own],
        }
    return {
        "schema": "clean/1",
        "source": what["source"],
        "reader": what["reader"],
        "bytes": sum(entry["bytes"] for entry in splits.values()),
        "splits": splits,
        "quarantine": count_reasons(entry for report in reports for entry in report.rejected),
    }


def _set_aside(card: dict[str, Any]) -> str:
    """``2 quarantined (missing_image 1, truncated_image 1)``"""
    reasons = card["quarantine"]
    listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    return f"{sum(reasons.values())} quarantined" + (f" ({listed})" if listed else "")


def _media_bytes(row: Row) -> int:
    return sum(len(media["bytes"]) for media in row["media"])


def _report_from_json(text: str) -> ShardReport:
    values = json.loads(text)
    rejected = tuple(Rejected(**entry) for entry in values.pop("rejected"))
    return ShardReport(**values, rejected=rejected)
