"""The ``pack`` stage: clean samples → sequences of ids and references, for one tokenizer and template.

Ray encodes the samples of all sources in parallel; the driver sees only their sizes, and decides which share
a sequence and in which order sequences come; Ray writes the shards. No step depends on the number of workers.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from casa_core.errors import ConfigError
from pipelines.data.encode import SPLIT, EncodeReport, EncodeTask, Encoding, encode_rows
from pipelines.data.pack_card import Lengths, pack_card
from pipelines.data.packing import Budget, Item, interleave, pack, shuffled
from pipelines.data.quarantine import QUARANTINE, count_reasons, write_quarantine
from pipelines.data.ray_map import ray_map
from pipelines.data.sequences import PACK_SCHEMA, Kind, packed_row
from pipelines.data.store import (
    CARD,
    INDEX,
    CleanReader,
    ShardReader,
    remove_leftovers,
    write_json,
    write_shard,
)

if TYPE_CHECKING:
    from pipelines.dag.context import StageContext

ROWS_PER_TASK = 4096
SEQUENCES_PER_SHARD = 512
TOKENIZER = "tokenizer"
_ENCODED = ".encoded"
_PROCESSOR = "processor"


@dataclass(frozen=True, slots=True)
class PlannedSequence:
    """A planned sequence: its samples as (source number, number among that source's encoded samples)."""

    kind: Kind
    samples: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembleTask:
    """One shard of packed sequences to write.

    Attributes:
        sources: Names, in the recipe's order.
        encoded: The encoded shards of each source.
        metadata: Of the shard's schema.
    """

    output: Path
    sequences: tuple[PlannedSequence, ...]
    sources: tuple[str, ...]
    encoded: tuple[tuple[Path, ...], ...]
    metadata: dict[str, str]


def run_stage(context: StageContext) -> dict[str, Any]:
    """Packs the training split of all of ``what.sources``.

    Returns:
        Sequences by kind, their lower bound, the fill of both budgets and the quarantined samples by reason.

    Raises:
        ConfigError: Where no sample is left to pack.
    """
    what, output = context.what, context.output
    budget = Budget(what["text_tokens"], what["image_tokens"])
    readers = [CleanReader(context.inputs[source], SPLIT) for source in what["sources"]]
    scratch = output / _ENCODED
    scratch.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    context.progress(0, 3, "tokenizer")
    tokenizer_hash = make_tokenizer(what["tokenizer"], readers, output / TOKENIZER)
    context.progress(1, 3, "encoding")
    tasks, reports = _encode(context, readers, budget)
    context.progress(2, 3, "packing")
    lengths = _lengths(what["sources"], tasks, reports)
    sequences = plan_sequences(lengths, budget, what["seed"])
    metadata = {"casa.tokenizer": tokenizer_hash, "casa.template": reports[0].template_hash}
    shards = _assemble(context, sequences, tasks, metadata)
    # Beside the tokenizer goes the rest of the processor: training starts from the very one that packed.
    shutil.copytree(scratch / _PROCESSOR, output / TOKENIZER, dirs_exist_ok=True)
    rejected = [entry for report in reports for entry in report.rejected]
    packed = sum(len(sequence.samples) for sequence in sequences)
    assert packed + len(rejected) == sum(map(len, readers)), "every sample is packed or quarantined"
    write_quarantine(output / QUARANTINE, rejected)
    kinds = [sequence.kind for sequence in sequences]
    by_kind = {kind: [n for n, own in enumerate(kinds) if own == kind] for kind in ("image", "video")}
    write_json(output / INDEX, {"sequences": len(sequences), "by_kind": by_kind, "shards": shards})
    card = pack_card(lengths, sequences, budget) | {
        "encoding": {name: what[name] for name in ("template", "backbone", "max_side")} | metadata,
        "quarantine": count_reasons(rejected),
    }
    write_json(output / CARD, card)
    shutil.rmtree(scratch)
    context.progress(3, 3, f"{len(sequences)} sequences")
    names = ("sequences", "lower_bound", "fill", "by_kind", "quarantine")
    pictures = card["by_kind"]["image"]
    headline = (
        f"{card['sequences']:,} sequences, at best {card['lower_bound']:,} · with pictures: "
        f"text {pictures['fill']['text']:.0%} full, images {pictures['fill']['image']:.0%}"
    )
    return {"headline": headline} | {name: card[name] for name in names}


def make_tokenizer(how: dict[str, Any], readers: Sequence[CleanReader], folder: Path) -> str:
    """Trains a tokenizer on the samples' texts, or copies one; returns the hash of its definition."""
    from transformers import PreTrainedTokenizerFast

    from casa_core.tokenizer import build_tokenizer

    if "train_bpe" in how:
        tokenizer = build_tokenizer(_texts(readers), how["train_bpe"]["vocab_size"])
    elif "path" in how:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(how["path"])
    else:
        raise ConfigError(
            "The recipe names no tokenizer.",
            f"Found {how!r}.",
            "Set model.tokenizer.train_bpe.vocab_size or model.tokenizer.path.",
        )
    tokenizer.save_pretrained(folder)
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def plan_sequences(lengths: Sequence[Lengths], budget: Budget, seed: int) -> list[PlannedSequence]:
    """Which samples share a sequence, and the order of the sequences; pictures together, videos each alone.

    Raises:
        ConfigError: Where there is no sample.
    """
    source_N, number_N = interleave([len(own.text) for own in lengths])
    if not len(source_N):
        raise ConfigError(
            "There is no sample to pack.", "Every sample was quarantined.", "Raise the budgets."
        )
    pairs = list(zip(source_N.tolist(), number_N.tolist(), strict=True))
    videos = [n for n, (source, own) in enumerate(pairs) if lengths[source].video[own]]
    alone = set(videos)

    def items() -> Iterator[Item]:
        for number, (source, own) in enumerate(pairs):
            if number not in alone:
                yield Item(number, int(lengths[source].text[own]), int(lengths[source].image[own]))

    planned: list[tuple[Kind, list[int]]] = []
    for members in pack(items(), budget):
        planned.append(("image", members))
    for number in videos:
        planned.append(("video", [number]))
    planned.sort(key=lambda entry: entry[1][0])  # kinds mixed, and near to the order of the clean artifacts
    return [
        PlannedSequence(planned[at][0], tuple(pairs[number] for number in planned[at][1]))
        for at in shuffled(len(planned), seed).tolist()
    ]


def assemble(task: AssembleTask) -> int:
    """Writes one shard of packed sequences from the encoded ones; returns its rows."""
    readers = [ShardReader(paths, "encoded/1") for paths in task.encoded]
    schema = PACK_SCHEMA.with_metadata({**(PACK_SCHEMA.metadata or {}), **task.metadata})
    rows = (
        packed_row(
            [(task.sources[source], readers[source][number]) for source, number in sequence.samples],
            sequence.kind,
        )
        for sequence in task.sequences
    )
    return write_shard(task.output, schema, rows)


def _texts(readers: Sequence[CleanReader]) -> Iterator[str]:
    for reader in readers:
        yield from reader.texts()


def _encode(
    context: StageContext, readers: Sequence[CleanReader], budget: Budget
) -> tuple[list[EncodeTask], list[EncodeReport]]:
    what = context.what
    encoding = Encoding(
        tokenizer=str(context.output / TOKENIZER),
        template=what["template"],
        backbone=what["backbone"],
        max_side=what["max_side"],
    )
    tasks = [
        EncodeTask(
            source=source,
            clean=context.inputs[source],
            start=start,
            stop=min(start + ROWS_PER_TASK, len(reader)),
            output=context.output / _ENCODED / f"{number:03d}-{start // ROWS_PER_TASK:05d}.arrow",
            encoding=encoding,
            budget=budget,
        )
        for number, (source, reader) in enumerate(zip(what["sources"], readers, strict=True))
        for start in range(0, len(reader), ROWS_PER_TASK)
    ]
    tasks[:1] = [replace(task, processor=context.output / _ENCODED / _PROCESSOR) for task in tasks[:1]]
    reports = []
    for report in ray_map(encode_rows, tasks, workers=context.where["data"]["workers"]):
        reports.append(report)
        context.progress(1 + len(reports) / len(tasks), 3, "encoding")
    return tasks, reports


def _lengths(
    sources: Sequence[str], tasks: Sequence[EncodeTask], reports: Sequence[EncodeReport]
) -> list[Lengths]:
    lengths = []
    for source in sources:
        own = [report for task, report in zip(tasks, reports, strict=True) if task.source == source]
        empty = np.empty(0, np.int64)
        lengths.append(
            Lengths(
                source=source,
                text=np.concatenate([empty, *(report.text for report in own)]),
                image=np.concatenate([empty, *(report.image for report in own)]),
                video=np.concatenate([empty.astype(bool), *(report.video for report in own)]),
            )
        )
    return lengths


def _assemble(
    context: StageContext,
    sequences: Sequence[PlannedSequence],
    encoded: Sequence[EncodeTask],
    metadata: dict[str, str],
) -> list[dict[str, Any]]:
    sources = tuple(context.what["sources"])
    tasks = [
        AssembleTask(
            output=context.output / f"packed-{start // SEQUENCES_PER_SHARD:05d}.arrow",
            sequences=tuple(sequences[start : start + SEQUENCES_PER_SHARD]),
            sources=sources,
            encoded=tuple(tuple(task.output for task in encoded if task.source == name) for name in sources),
            metadata=metadata,
        )
        for start in range(0, len(sequences), SEQUENCES_PER_SHARD)
    ]
    shards = []
    for task, rows in zip(
        tasks, ray_map(assemble, tasks, workers=context.where["data"]["workers"]), strict=True
    ):
        shards.append({"file": task.output.name, "rows": rows})
        context.progress(2 + len(shards) / len(tasks), 3, "writing")
    return shards
