"""The ``pack`` stage: clean samples → sequences of ids and references, for one tokenizer and template.

Filters decide what is kept; Ray Data encodes the samples of all sources; the driver sees only their sizes,
and decides which share a sequence and in which order sequences come; Ray Data writes the shards. No step
depends on the number of workers, and a killed stage resumes with the shards that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.data.filter.filters import FILTERED, filter_sources, write_filtered
from pipelines.data.pack.accounting import check_plan, check_rows, check_written
from pipelines.data.pack.card import pack_card
from pipelines.data.pack.encode import SPLIT
from pipelines.data.pack.encode_shards import (
    ENCODED_FOLDER,
    EncodeReport,
    EncodeShards,
    EncodeTask,
    encoded_name,
)
from pipelines.data.pack.plan import (
    EncodedSamples,
    Plan,
    gather,
    plan_rows,
    plan_sequences,
    sample_stream,
)
from pipelines.data.pack.processor import Encoding, load_processor, make_tokenizer
from pipelines.data.pack.settings import PackSettings, read_pack_settings
from pipelines.data.pack.video_counts import VideoCounts
from pipelines.data.pack.write import PackShards, WriteTasks, Written
from pipelines.data.store.on_ray import on_ray
from pipelines.data.store.quarantine import QUARANTINE, Tally, merge_quarantines, rejected_table
from pipelines.data.store.readers import CleanReader
from pipelines.data.store.shard_pipeline import REPORTS, Run, write_shards
from pipelines.data.store.shard_writing import CARD, write_index, write_json
from pipelines.recipe.pack import Mixture, frame_side
from pipelines.recipe.where import DataWorkers
from pipelines.storage.atomic import remove_leftovers
from pipelines.storage.transfer import local_output, remove_tree
from pipelines.storage.uri import Folder

if TYPE_CHECKING:
    from pipelines.dag.context import StageContext

ROWS_PER_TASK = 4096
SEQUENCES_PER_SHARD = 512
TOKENIZER = "tokenizer"
_STEPS = 4
_REMEDY = "Raise the budgets of `pack`, leave such samples out by `data.filters`"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoded:
    """What became of the input: samples as ids, what was set aside, and of each source's videos."""

    samples: EncodedSamples
    rejected: Tally
    videos: dict[str, VideoCounts]
    filters: dict[str, Any]


def run_stage(context: StageContext) -> dict[str, Any]:
    """Packs the training split of all sources.

    Returns:
        Sequences by kind, their lower bound, the fill of both budgets and the quarantined samples by reason.

    Raises:
        ConfigError: Where no sample is left to pack, or a setting cannot work.
        DataError: Where more than ``max_failures`` of a source's samples are set aside, filtered ones aside.
        StoreError: Where a row would be lost or doubled.
    """
    placement = DataWorkers.model_validate(context.placement["data"])
    return pack_sources(context, on_ray(placement.workers))


def pack_sources(context: StageContext, run: Run) -> dict[str, Any]:
    """The stage, with ``run`` to carry its shards: on Ray in a run, in this process in a test."""
    settings, output = read_pack_settings(context.settings), context.output
    readers = {source: CleanReader(context.inputs[source], SPLIT) for source in settings.sources}
    for folder in (ENCODED_FOLDER, REPORTS):
        (output / folder).mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    remove_leftovers(output / ENCODED_FOLDER)
    context.progress(0, _STEPS, "tokenizer")
    encoding, hashes = _prepare_encoding(context, settings, readers)
    context.progress(1, _STEPS, "filters")
    found = _encode(context, settings, readers, encoding, run)
    context.progress(3, _STEPS, "packing")
    rows = plan_rows(found.samples, settings.mixture)
    stream = sample_stream(found.samples, rows, settings.seed)
    plan = plan_sequences(found.samples, stream, settings.limits, settings.seed)
    check_plan(found.samples, plan, rows)
    shards = _write(context, found.samples, plan, hashes, run)
    write_index(output, [asdict(shard) for shard in shards], plan.video_S)  # image is kind 0, video 1
    card = pack_card(found.samples, plan, settings.limits) | {
        "encoding": {name: getattr(settings, name) for name in ("template", "backbone", "max_side")} | hashes,
        "mixture": rows.report() if settings.mixture != Mixture() else None,
        "filters": found.filters,
        "quarantine": found.rejected.by_reason(),
        "videos": {name: asdict(own) for name, own in found.videos.items() if own.videos},
        "clean": {source: _clean_fate(context.inputs[source]) for source in settings.sources},
    }
    write_json(output / CARD, card)
    for folder in (ENCODED_FOLDER, REPORTS):
        remove_tree(output / folder)
    context.progress(_STEPS, _STEPS, f"{len(plan)} sequences")
    return _summary(card)


def _prepare_encoding(
    context: StageContext, settings: PackSettings, readers: Mapping[str, CleanReader]
) -> tuple[Encoding, dict[str, str]]:
    """Saves tokenizer and processor into the artifact, for workers and for training.

    Returns:
        How workers encode, and the hashes of tokenizer and template.
    """
    texts = (text for reader in readers.values() for text in reader.texts())
    with local_output(context.output / TOKENIZER) as folder:
        tokenizer_hash = make_tokenizer(settings.tokenizer, texts, settings.template, folder)
        encoding = Encoding(
            tokenizer=str(folder),
            template=settings.template,
            backbone=settings.backbone,
            max_side=settings.max_side,
            max_frame_side=frame_side(settings.max_side, settings.max_frame_side),
            max_video_tokens=settings.limits.video.image,
            min_frame_side=settings.min_frame_side,
            video_over_budget=settings.video_over_budget,
            image_placement=settings.image_placement,
        )
        processor = load_processor(encoding)
        processor.save_pretrained(folder)
    hashes = {"casa.tokenizer": tokenizer_hash, "casa.template": processor.template_hash()}
    return replace(encoding, tokenizer=str(context.output / TOKENIZER)), hashes


def _encode(
    context: StageContext,
    settings: PackSettings,
    readers: Mapping[str, CleanReader],
    encoding: Encoding,
    run: Run,
) -> _Encoded:
    """Filters and encodes all rows of all sources, and checks that each row has one fate."""
    filtered = filter_sources(readers, settings.filters, run)
    if filtered.report:
        write_filtered(context.output / FILTERED, filtered.removed)
    context.progress(2, _STEPS, "encoding")
    tasks = _encode_tasks(context, filtered.keep)
    shards = EncodeShards(
        context.output, encoding, settings.limits, {name: task.source for name, task in tasks.items()}
    )
    reports = _encode_all(context, shards, tasks, filtered.keep, settings.max_failures, run)
    of_sources = [task.source for task in tasks.values()]
    samples = gather(settings.sources, of_sources, reports)
    for number, source in enumerate(samples.sources):
        own = [report.rejected for of, report in zip(of_sources, reports, strict=True) if of == source]
        rejected = np.concatenate([np.empty(0, np.int32), *own])
        columns = samples.of(number, samples.row_E), samples.of(number, samples.part_E)
        check_rows(source, filtered.keep[source], rejected, *columns)
    tally = Tally()
    videos = {source: VideoCounts() for source in settings.sources}
    for source, report in zip(of_sources, reports, strict=True):
        tally.add(report.tally)
        videos[source].add(report.videos)
    return _Encoded(samples=samples, rejected=tally, videos=videos, filters=filtered.report)


def _encode_all(
    context: StageContext,
    shards: EncodeShards,
    tasks: Mapping[str, EncodeTask],
    keep: Mapping[str, NDArray[np.bool_]],
    max_failures: float,
    run: Run,
) -> list[EncodeReport]:
    """Runs all tasks, and stops as soon as more of a source's kept samples are rejected than may be."""
    reports: dict[str, EncodeReport] = {}
    rejected = {source: Tally() for source in keep}
    try:
        with closing(write_shards(run, shards, tasks, context.output)) as written:
            for name, values in written:
                report = reports[name] = EncodeReport.from_json(values)
                context.progress(2 + len(reports) / len(tasks), _STEPS, "encoding")
                source = tasks[name].source
                rejected[source].add(report.tally)
                rejected[source].check(source, int(keep[source].sum()), max_failures, remedy=_REMEDY)
    finally:  # also where too many were rejected, so that they can be looked at
        tables = (rejected_table(context.output, name) for name in tasks if name in reports)
        merge_quarantines(context.output / QUARANTINE, tables)
    return [reports[name] for name in tasks]


def _encode_tasks(context: StageContext, keep: Mapping[str, NDArray[np.bool_]]) -> dict[str, EncodeTask]:
    spans = [
        (source, start, min(start + ROWS_PER_TASK, len(kept)))
        for source, kept in keep.items()
        for start in range(0, len(kept), ROWS_PER_TASK)
    ]
    return {
        encoded_name(number): EncodeTask(
            source=source,
            clean=context.inputs[source],
            start=start,
            stop=stop,
            keep=keep[source][start:stop],
        )
        for number, (source, start, stop) in enumerate(spans)
    }


def _write(
    context: StageContext, samples: EncodedSamples, plan: Plan, metadata: dict[str, str], run: Run
) -> list[Written]:
    """Writes all shards, and checks that each holds what was planned; they come in the order of the plan."""
    tasks = WriteTasks(samples, plan, SEQUENCES_PER_SHARD)
    found: dict[str, Written] = {}
    shards = PackShards(context.output, samples.sources, metadata)
    with closing(write_shards(run, shards, tasks, context.output)) as written:
        for name, values in written:
            shard = found[name] = Written(**values)
            check_written(shard.file, tasks.planned_checksum(name), shard.checksum)
            context.progress(3 + len(found) / len(tasks), _STEPS, "writing")
    return [found[name] for name in tasks]


def _clean_fate(folder: Folder) -> dict[str, Any]:
    """What became of a source's records before: how many there were, and those that clean set aside."""
    card = json.loads((folder / CARD).read_text())
    return {
        "records": sum(split["records"] for split in card["splits"].values()),
        "quarantine": card["quarantine"],
    }


def _summary(card: Mapping[str, Any]) -> dict[str, Any]:
    pictures = card["by_kind"]["image"]
    headline = (
        f"{card['sequences']:,} sequences, at best {card['lower_bound']:,} · with pictures: "
        f"text {pictures['fill']['text']:.0%} full, images {pictures['fill']['image']:.0%}"
    )
    if rejected := sum(card["quarantine"].values()):
        headline += f" · {rejected:,} quarantined"
    if before := sum(sum(own["quarantine"].values()) for own in card["clean"].values()):
        headline += f" · {before:,} quarantined by clean"
    names = ("sequences", "lower_bound", "fill", "by_kind", "quarantine")
    return {"headline": headline} | {name: card[name] for name in names}
