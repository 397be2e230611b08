"""Parts that the cards of clean and pack artifacts share: quarantine, filters, settings."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.data.card_gallery import row_thumbnail, shortened, spaced
from pipelines.data.quarantine import Rejected
from pipelines.data.store import CleanReader
from pipelines.report.html import Html, tag
from pipelines.report.sections.layout import fold, section, table

FILTERED = "filtered.parquet"
EXAMPLES = 5
"""Examples shown of each reason and of each filter."""
_PICTURE_SIDE = 96
_PLACES = frozenset({"path"})
"""Settings that say where something lies, and differ from machine to machine."""

REASONS = {
    "empty_file": "a picture or video of zero bytes",
    "not_an_image": "bytes that begin like no known picture format",
    "truncated_image": "a picture that ends early or cannot be decoded",
    "decompression_bomb": "a picture of too many pixels",
    "missing_image": "a picture that the record names or needs, and does not have",
    "missing_text": "a turn without its text",
    "unreadable_file": "a file that cannot be opened in its layout",
    "unreadable_rows": "a part of a file that cannot be read",
    "extreme_aspect_ratio": "a picture too elongated to be resized",
    "empty_image": "a picture without pixels",
    "over_text_budget": "a sample of more text tokens than a sequence holds",
    "over_image_budget": "a sample of more image tokens than a sequence holds",
}
"""Reason → what it means. A reason that is not listed speaks for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilteredRow:
    """A sample that a filter removed.

    Attributes:
        source, row, sample_id: Which sample; ``row`` of the training split of the source's clean artifact.
        filter: Its name.
        detail: What the filter found.
    """

    source: str
    row: int
    sample_id: str
    filter: str
    detail: str


def read_filtered(path: Path) -> list[FilteredRow]:
    """The samples that filters removed; none where no filter ran."""
    if not path.is_file():
        return []
    columns = list(FilteredRow.__dataclass_fields__)
    return [FilteredRow(**row) for row in pq.read_table(path, columns=columns).to_pylist()]


def quarantine_section(rejected: Sequence[Rejected], records: int) -> Html:
    """Counts by reason, and some examples of each.

    Args:
        rejected: All that was set aside.
        records: Out of how many.
    """
    if not rejected:
        return section("Quarantine", f"None of {records:,} records had to be set aside.")
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
            [tag("code", reason), source, f"{len(own):,}", REASONS.get(reason, "")]
            for (reason, source), own in ordered
        ],
        numeric=[2],
    )
    folds = [
        fold(f"{reason}, {source}: {min(len(own), EXAMPLES)} of {len(own):,}", _rejected_table(own))
        for (reason, source), own in ordered
    ]
    return section("Quarantine", lead, totals, *folds)


def _rejected_table(entries: Sequence[Rejected]) -> Html:
    rows = [
        [tag("code", entry.file), f"{entry.row:,}", tag("code", entry.sample_id), entry.detail]
        for entry in (entries[at] for at in spaced(len(entries), EXAMPLES))
    ]
    return table(["file", "row", "sample", "what was found"], rows, numeric=[1])


def filters_section(
    filtered: Sequence[FilteredRow], readers: Mapping[str, CleanReader], declared: Iterable[str]
) -> Html:
    """What each filter removed, with examples and their pictures.

    Args:
        filtered: All that filters removed.
        readers: Clean artifact of each source, to take pictures from.
        declared: Names of the filters that ran, those included that removed nothing.
    """
    counts = Counter(entry.filter for entry in filtered)
    names = sorted({*declared, *counts}, key=lambda name: (-counts[name], name))
    if not names:
        return section("Filters", "The recipe declares no quality filter, so every clean sample is packed.")
    sources = sorted({entry.source for entry in filtered})
    by_source = Counter((entry.filter, entry.source) for entry in filtered)
    lead = (
        f"{len(filtered):,} samples were removed on purpose; filtered.parquet lists them. A sample "
        "counts under the first filter that removes it."
    )
    rows = [
        [name, f"{counts[name]:,}", *(f"{by_source[name, source]:,}" for source in sources)] for name in names
    ]
    totals = table(["filter", "removed", *sources], rows, numeric=range(1, len(sources) + 2))
    groups = {name: [entry for entry in filtered if entry.filter == name] for name in names}
    folds = [
        fold(f"{name}: {min(len(own), EXAMPLES)} of {len(own):,}", _filtered_table(own, readers))
        for name, own in groups.items()
        if own
    ]
    return section("Filters", lead, totals, *folds)


def _filtered_table(entries: Sequence[FilteredRow], readers: Mapping[str, CleanReader]) -> Html:
    rows = [
        [
            row_thumbnail(readers, entry.source, entry.row, side=_PICTURE_SIDE),
            entry.source,
            f"{entry.row:,}",
            tag("code", entry.sample_id),
            shortened(entry.detail),
        ]
        for entry in (entries[at] for at in spaced(len(entries), EXAMPLES))
    ]
    return table(["", "source", "row", "sample", "why"], rows, numeric=[2])


def settings_section(
    settings: Mapping[str, Any], schema: str, licences: Mapping[str, str | None], lines: Iterable[str] = ()
) -> Html:
    """What decided the artifact: its settings word for word, its rows' schema, the stated licences.

    Args:
        settings: The stage's part of the recipe.
        schema: Of the rows, with its version.
        licences: Source → licence as the recipe states it; ``None``: it states none.
        lines: Further sentences.
    """
    shown = {name: value for name, value in settings.items() if name not in _PLACES}
    lead = (
        "The same settings, inputs and code give this artifact again, byte for byte; its manifest.json has "
        "the hashes of its files, and the fingerprints of what it was made from."
    )
    listed = table(
        ["source", "licence"],
        [[source, licence or "not stated in the recipe"] for source, licence in sorted(licences.items())],
    )
    return section(
        "How it was made",
        lead,
        tag("p", "Rows follow the schema ", tag("code", schema), ". ", *(f"{line} " for line in lines)),
        listed,
        fold("Settings", tag("pre", json.dumps(shown, indent=2, sort_keys=True, ensure_ascii=False))),
    )
