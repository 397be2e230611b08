"""The ``clean`` stage: a corpus in its published layout → verified samples with their bytes, in Arrow shards.

Ray Data carries the records of each shard through reading, cleaning and writing in one task, from spans of
the corpus that are planned beforehand. So the files do not depend on the number of workers, no picture
travels through the object store, and a killed run resumes with the missing shards. Unusable records are
listed in ``quarantine.parquet``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from casa_core.media.limits import MAX_PIXELS
from pipelines.dag.settings import read_settings, stage_settings
from pipelines.data.clean.losses import Losses, losses_of
from pipelines.data.clean.records import PictureLimits
from pipelines.data.clean.shards import CleanShards, ShardReport, ShardTask
from pipelines.data.read import Reader, Span, open_reader
from pipelines.data.read.source.splits import SPLITS, Inventory, no_training_records
from pipelines.data.store.on_ray import on_ray
from pipelines.data.store.quarantine import QUARANTINE, Tally, merge_quarantines, rejected_table
from pipelines.data.store.shard_pipeline import REPORTS, Run, write_shards
from pipelines.data.store.shard_writing import CARD, write_json
from pipelines.storage.atomic import remove_leftovers
from pipelines.storage.transfer import remove_tree

if TYPE_CHECKING:
    from pipelines.dag.context import StageContext

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


def run_stage(context: StageContext) -> dict[str, Any]:
    """Cleans one source.

    Returns:
        Rows of each split, and the quarantined records by reason.

    Raises:
        DataError: Where more than ``max_failures`` of the records cannot be used.
        ClusterError: Where memory runs out: no record is quarantined for that.
    """
    return clean_source(context, on_ray(context.placement["data"]["workers"]))


def clean_source(context: StageContext, run: Run) -> dict[str, Any]:
    """The stage, with ``run`` to carry its shards: on Ray in a run, in this process in a test."""
    settings = CleanSettings.read(context.settings)
    root = str(context.inputs.get("corpus", settings.path))
    reader = open_reader(settings.reader, root, settings.source, settings.options)
    limits = PictureLimits(max_pixels=settings.max_pixels or MAX_PIXELS, shrink_above=settings.shrink_above)
    tasks = plan(reader)
    inventory = reader.inventory()
    losses = losses_of([span for task in tasks for span in task.spans], inventory.sizes.__getitem__)
    losses.check(settings.source, settings.max_failures)
    allowed = losses.left_of(settings.max_failures)
    reports = _clean_shards(context, reader, limits, tasks, allowed, run)
    card = _card(settings, tasks, reports) | {
        "files": inventory.to_json() | {"lost": {"files": losses.files, "records": losses.records}}
    }
    write_json(context.output / CARD, card)
    remove_tree(context.output / REPORTS)
    rows = {split: entry["rows"] for split, entry in card["splits"].items()}
    return {
        "headline": " · ".join(
            [
                *(f"{count:,} {split}" for split, count in rows.items()),
                *_texts_alone(card),
                _set_aside(card),
                *_left(inventory, losses),
            ]
        ),
        "rows": rows,
        "bytes": card["bytes"],
        "quarantined": card["quarantine"],
    }


def plan(reader: Reader) -> list[ShardTask]:
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
            ShardTask(split=split, number=number, spans=tuple(group)) for number, group in enumerate(groups)
        ]
    if not any(task.split == "train" for task in tasks):
        raise no_training_records(reader.source, reader.inventory())
    return tasks


def _shard_bytes(total: int) -> int:
    return min(BYTES_PER_SHARD, max(total // SHARDS_AT_LEAST, SMALL_SHARD))


def _clean_shards(
    context: StageContext,
    reader: Reader,
    limits: PictureLimits,
    tasks: Sequence[ShardTask],
    max_failures: float,
    run: Run,
) -> list[ShardReport]:
    """Cleans all shards, and stops as soon as more records are rejected than may be; reports as planned."""
    output = context.output
    remove_leftovers(output)
    by_name = {task.name: task for task in tasks}
    total = sum(task.records for task in tasks)
    reports: dict[str, ShardReport] = {}
    rejected = Tally()
    done = 0
    shards = write_shards(run, CleanShards(reader, limits, output), by_name, output)
    try:
        with closing(shards):
            for name, values in shards:
                report = reports[name] = ShardReport.from_json(values)
                written = report.rows + report.rejected.total
                assert written == by_name[name].records, "every record is written or quarantined"
                rejected.add(report.rejected)
                done += written
                context.progress(done, total, f"{rejected.total} quarantined")
                rejected.check(reader.source, total, max_failures)
    finally:  # also where too many were rejected, so that they can be looked at
        found = [reports[task.name] for task in tasks if task.name in reports]
        tables = [rejected_table(output, report.name) for report in found if report.rejected.total]
        listed = merge_quarantines(output / QUARANTINE, tables)
    remove_leftovers(output)  # of workers that were lost in this run, whose shards others have written since
    assert listed == rejected.total, "every rejected record is listed"
    assert done == total, "every shard is written"
    return found


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
            "without_pictures": sum(report.without_pictures for report in own),
            "shrunk": {
                name: sum(report.shrunk[name] for report in own) for name in ("pictures", "bytes_before")
            },
            "shared": {name: sum(report.shared[name] for report in own) for name in ("media", "bytes")},
            "shards": [{"file": f"{report.name}.arrow", "rows": report.rows} for report in own],
        }
        for report in own:
            rejected.add(report.rejected)
    return {
        "schema": "clean/3",
        "source": settings.source,
        "reader": settings.reader,
        "bytes": sum(entry["bytes"] for entry in splits.values()),
        "splits": splits,
        "quarantine": rejected.by_reason(),
    }


def _texts_alone(card: dict[str, Any]) -> list[str]:
    """``3 samples without pictures``, where there are any."""
    count = sum(split["without_pictures"] for split in card["splits"].values())
    return [f"{count:,} samples without pictures"] if count else []


def _set_aside(card: dict[str, Any]) -> str:
    """``2 quarantined (missing_image 1, truncated_image 1)``"""
    reasons = card["quarantine"]
    listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    return f"{sum(reasons.values())} quarantined" + (f" ({listed})" if listed else "")


def _left(inventory: Inventory, losses: Losses) -> list[str]:
    """What is missing beside the records set aside: files lost, and files that are not read."""
    lost = f"{len(losses.files)} files lost, about {losses.records:,} records" if losses.files else ""
    return [text for text in (lost, inventory.summary()) if text]
