"""Sections common to the cards of clean and pack artifacts: quarantine, filters, settings."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.cards.gallery import row_thumbnail, shortened, spaced
from pipelines.data.filter.filters import FILTERED_SCHEMA
from pipelines.data.read.source.reasons import REASONS
from pipelines.data.store.quarantine import Rejected
from pipelines.data.store.readers import CleanReader
from pipelines.html.layout import figure, fold, section, table
from pipelines.html.tags import Html, tag
from pipelines.storage.uri import Folder

EXAMPLES = 5
"""Examples per reason and per filter."""
_PICTURE_SIDE = 96

PACK_REASONS = {
    "extreme_aspect_ratio": "The picture is too elongated to be resized.",
    "empty_image": "The picture has no pixels.",
    "nothing_to_train": "No token of an answer is trained.",
    "over_text_budget": "The sample has more text tokens than a sequence holds, and cannot be split.",
    "over_image_budget": "The sample has more image tokens than a sequence holds, and cannot be made to fit.",
}
"""Reason for which the pack stage sets a sample aside → what it means."""


def read_filtered(path: Folder) -> pa.Table:
    """The samples that filters removed, as ``FILTERED_SCHEMA``; an empty table where no filter ran."""
    if not path.is_file():
        return FILTERED_SCHEMA.empty_table()
    table = pq.read_table(pa.BufferReader(path.read_bytes()), columns=FILTERED_SCHEMA.names)
    return table.cast(FILTERED_SCHEMA)


def quarantine_section(
    rejected: Sequence[Rejected], records: int, clean: Mapping[str, Mapping[str, Any]] | None = None
) -> Html:
    """Number of records by reason, and some examples of each.

    Args:
        rejected: All records that were set aside.
        records: Number of all records.
        clean: For a pack artifact, what became of each source's records before: its card's ``clean``.
    """
    before = _set_aside_before(clean or {})
    if not rejected:
        own = " here" if clean else ""
        return section("Quarantine", f"None of {records:,} records had to be set aside{own}.", before)
    groups: dict[tuple[str, str], list[Rejected]] = defaultdict(list)
    for entry in rejected:
        groups[entry.reason, entry.source].append(entry)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    lead = (
        f"{len(rejected):,} of {records:,} records could not be used. They are left out of everything that "
        "follows, and listed one by one in quarantine.parquet."
    )
    totals = table(
        ["reason", "source", "records", "meaning"],
        [
            [tag("code", reason), source, f"{len(own):,}", (REASONS | PACK_REASONS).get(reason, "")]
            for (reason, source), own in ordered
        ],
        numeric=[2],
    )
    folds = [
        fold(f"{reason}, {source}: {min(len(own), EXAMPLES)} of {len(own):,}", _rejected_table(own))
        for (reason, source), own in ordered
    ]
    return section("Quarantine", lead, totals, *folds, before)


def _set_aside_before(clean: Mapping[str, Mapping[str, Any]]) -> Html:
    """What clean set aside of each source; empty where that is nothing."""
    rows = [
        [tag("code", reason), source, f"{count:,}", f"{own['records']:,}", REASONS.get(reason, "")]
        for source, own in clean.items()
        for reason, count in sorted(own["quarantine"].items(), key=lambda item: (-item[1], item[0]))
    ]
    if not rows:
        return Html()
    head = ["reason", "source", "records", "of", "meaning"]
    return figure("Set aside before, by clean", table(head, rows, numeric=[2, 3]))


def _rejected_table(entries: Sequence[Rejected]) -> Html:
    rows = [
        [tag("code", entry.file), f"{entry.row:,}", tag("code", entry.sample_id), entry.detail]
        for entry in (entries[at] for at in spaced(len(entries), EXAMPLES))
    ]
    return table(["file", "row", "sample", "what was found"], rows, numeric=[1])


def filters_section(filtered: pa.Table, readers: Mapping[str, CleanReader], declared: Iterable[str]) -> Html:
    """Number of samples that each filter removed, with examples and their pictures.

    Args:
        filtered: All samples that filters removed, as ``FILTERED_SCHEMA``.
        readers: Source → clean artifact, for the pictures.
        declared: Names of the filters that ran, including those that removed nothing.
    """
    grouped = filtered.group_by(["filter", "source"]).aggregate([([], "count_all")]).to_pylist()
    counts = {(row["filter"], row["source"]): row["count_all"] for row in grouped}
    removed = Counter[str]()
    for (name, _), count in counts.items():
        removed[name] += count
    names = sorted({*declared, *removed}, key=lambda name: (-removed[name], name))
    if not names:
        return section("Filters", "The recipe declares no quality filter, so every clean sample is packed.")
    sources = sorted({source for _, source in counts})
    lead = (
        f"{filtered.num_rows:,} samples were removed on purpose; filtered.parquet lists them. A sample "
        "counts under the first filter that removes it."
    )
    rows = [
        [name, f"{removed[name]:,}", *(f"{counts.get((name, source), 0):,}" for source in sources)]
        for name in names
    ]
    totals = table(["filter", "removed", *sources], rows, numeric=range(1, len(sources) + 2))
    folds = [
        fold(
            f"{name}: {min(removed[name], EXAMPLES)} of {removed[name]:,}", _examples(filtered, name, readers)
        )
        for name in names
        if removed[name]
    ]
    return section("Filters", lead, totals, *folds)


def _examples(filtered: pa.Table, name: str, readers: Mapping[str, CleanReader]) -> Html:
    """Evenly spaced samples that a filter removed."""
    own = filtered.filter(pc.field("filter") == name)
    rows = [
        [
            row_thumbnail(readers, entry["source"], entry["row"], side=_PICTURE_SIDE),
            entry["source"],
            f"{entry['row']:,}",
            tag("code", entry["sample_id"]),
            shortened(entry["detail"]),
        ]
        for entry in own.take(spaced(own.num_rows, EXAMPLES)).to_pylist()
    ]
    return table(["", "source", "row", "sample", "why"], rows, numeric=[2])


def settings_section(settings: Mapping[str, Any], schema: str) -> Html:
    """Settings that decided the artifact, and its rows' schema.

    Args:
        settings: The stage's part of the recipe.
        schema: Name and version of the rows' schema.
    """
    lead = (
        "The same settings, inputs and code give this artifact again, byte for byte; its manifest.json has "
        "the hashes of its files, and the fingerprints of what it was made from."
    )
    return section(
        "How it was made",
        lead,
        tag("p", "Rows follow the schema ", tag("code", schema), "."),
        fold("Settings", tag("pre", json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False))),
    )
