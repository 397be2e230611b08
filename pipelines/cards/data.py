"""Data cards: HTML pages that describe a clean or pack artifact, made on demand from the artifact alone.

Equal artifacts have equal cards, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from casa_core.errors import StoreError, cause
from pipelines.cards.gallery import CLIPS, PICTURES, gallery
from pipelines.cards.pack import budget_line, fill_section, mixture_section, pack_tiles, videos_section
from pipelines.cards.samples import clean_histograms, token_histograms
from pipelines.cards.tables import (
    filters_section,
    quarantine_section,
    read_filtered,
    settings_section,
)
from pipelines.dag.artifact import read_manifest
from pipelines.data.filter.filters import FILTERED
from pipelines.data.pack.encode import SPLIT
from pipelines.data.store.quarantine import QUARANTINE, Rejected, read_quarantine
from pipelines.data.store.readers import CleanReader, PackReader
from pipelines.data.store.shard_writing import CARD
from pipelines.html.document import asset, document, script
from pipelines.html.layout import anchor, section, table, tile, tiles
from pipelines.html.tags import Html, tag
from pipelines.storage.uri import Folder
from pipelines.text_format import byte_size, number


def card_page(folder: Folder, clean: Mapping[str, Folder]) -> str:
    """The data card of a clean or pack artifact as one HTML document, which needs no network.

    Args:
        folder: The artifact.
        clean: Source → clean artifact, for the sample pictures of a pack artifact; may hold more sources.

    Raises:
        StoreError: If the folder is no finished clean or pack artifact, a clean artifact that it refers to is
            missing, or its ``card.json`` lacks what every card of its kind has.
    """
    manifest = read_manifest(folder) or {}
    kind = manifest.get("kind")
    if kind not in ("clean", "pack"):
        raise StoreError(
            f"{folder} has no data card.",
            "It is not a finished clean or pack artifact.",
            "Name the folder of one, or run the stage that writes it.",
        )
    places = manifest.get("location", {})  # differ from machine to machine
    settings = {name: value for name, value in manifest["what"].items() if name not in places}
    card = _read_card(folder)
    rejected = read_quarantine(folder / QUARANTINE)
    if kind == "clean":
        return _clean_page(card, rejected, CleanReader(folder, SPLIT), settings)
    _need(card, ("schema", "budget", "sequences", "lower_bound", "fill", "by_kind", "sources"))
    missing = [name for name in card["sources"] if name not in clean]
    if missing:
        raise StoreError(
            f"The clean artifacts of {', '.join(missing)} are missing.",
            f"{folder} refers to the pictures in them.",
            "Put them back into the store, or run the clean stage again.",
        )
    readers = {name: CleanReader(clean[name], SPLIT) for name in card["sources"]}
    return _pack_page(card, rejected, read_filtered(folder / FILTERED), PackReader(folder), readers, settings)


def _clean_page(
    card: Mapping[str, Any], rejected: Sequence[Rejected], reader: CleanReader, settings: Mapping[str, Any]
) -> str:
    _need(card, ("source", "schema", "bytes", "splits"))
    source, splits = card["source"], card["splits"]
    records = sum(split["records"] for split in splits.values())
    scope, histograms = clean_histograms(reader)
    gallery_lead = (
        f"Up to {PICTURES} samples with pictures, {CLIPS} with videos, evenly spaced over the train split, "
        "not picked by hand. The first question and the first answer are shown."
    )
    return _page(
        title=source,
        kicker="Data card · clean artifact",
        subtitle=f"Read as {card.get('reader', 'an unknown layout')}; every picture was decoded once.",
        header=_clean_tiles(card, records),
        sections={
            "Splits": section("Splits", "Only the train split is ever packed.", _split_table(splits)),
            **_files_section(card.get("files")),
            "Sizes": section("Sizes", f"Samples of the train split: {scope}.", histograms),
            "Samples": section("Samples", gallery_lead, gallery(reader)),
            "Quarantine": quarantine_section(rejected, records),
            "How it was made": settings_section(settings, card["schema"]),
        },
    )


def _pack_page(
    card: Mapping[str, Any],
    rejected: Sequence[Rejected],
    filtered: pa.Table,
    packed: PackReader,
    clean: Mapping[str, CleanReader],
    settings: Mapping[str, Any],
) -> str:
    names = list(clean)
    scope, histograms = token_histograms(packed, names)
    share = max(2, PICTURES // len(names))
    shown = (
        part for name in names for part in (tag("h3", name), gallery(clean[name], pictures=share, clips=1))
    )
    gallery_lead = "Evenly spaced over each source's train split, before filters; not picked by hand."
    return _page(
        title=" + ".join(names),
        kicker="Data card · pack artifact",
        subtitle=budget_line(card),
        header=pack_tiles(card),
        sections={
            "Fill": fill_section(card),
            "Tokens": section("Tokens", f"Documents of the sequences: {scope}.", histograms),
            "Mixture": mixture_section(card),
            **({"Videos": videos_section(card)} if card.get("videos") else {}),
            "Filters": filters_section(filtered, clean, card.get("filters", {})),
            "Quarantine": quarantine_section(rejected, sum(map(len, clean.values())), card.get("clean", {})),
            "Samples": section("Samples", gallery_lead, *shown),
            "How it was made": settings_section(settings, card["schema"]),
        },
    )


def _page(*, title: str, kicker: str, subtitle: str, header: Html, sections: Mapping[str, Html]) -> str:
    links = (tag("a", name, href=f"#{anchor(name)}") for name in sections)
    top = tag(
        "header",
        tag("p", kicker, class_="kicker"),
        tag("h1", title),
        tag("p", subtitle, class_="subtitle"),
        header,
        tag("nav", *links),
    )
    footer = tag("footer", tag("p", "Every number is read from the artifact; the file needs no network."))
    style = asset("pipelines.html", "report.css") + asset("pipelines.cards", "card.css")
    return document(f"{title}: data card", style, top, tag("main", *sections.values()), footer, script())


def _clean_tiles(card: Mapping[str, Any], records: int) -> Html:
    splits = card["splits"].values()
    kept = sum(split["rows"] for split in splits)
    aside = sum(split["quarantined"] for split in splits)
    media = {kind: sum(split[kind] for split in splits) for kind in ("images", "videos")}
    shrunk = sum(split.get("shrunk", {}).get("pictures", 0) for split in splits)
    shared = sum(split.get("shared", {}).get("media", 0) for split in splits)
    note = f"{shrunk:,} of them shrunk" if shrunk else "bytes as they were found"
    note += f", {shared:,} stored with another sample" if shared else ""
    found = " and ".join(f"{number(count)} {kind}" for kind, count in media.items() if count)
    return tiles(
        tile(number(kept), "samples", f"of {number(records)} records"),
        tile(found or "no pictures", "decoded once, found good", note),
        tile(byte_size(card["bytes"]), "of pictures and videos", f"{_each(card['bytes'], media)} each"),
        tile(number(aside), "set aside", f"{aside / max(records, 1):.3%} of the records"),
    )


def _each(size: int, media: Mapping[str, int]) -> str:
    return byte_size(size / max(sum(media.values()), 1))


def _split_table(splits: Mapping[str, Mapping[str, Any]]) -> Html:
    columns = ("records", "rows", "quarantined", "images", "videos", "without_pictures")
    rows = [
        [
            name,
            *(f"{split.get(column, 0):,}" for column in columns),
            byte_size(split["bytes"]),
            f"{len(split['shards']):,}",
        ]
        for name, split in splits.items()
    ]
    head = ["split", "records", "samples", "set aside", "pictures", "videos", "without", "media", "shards"]
    return table(head, rows, numeric=range(1, len(head)))


def _files_section(files: Mapping[str, Any] | None) -> dict[str, Html]:
    """Which files were read and which were not, where the card states it."""
    if not files:
        return {}
    rows = [[f"read, {split}", f"{count:,}", ""] for split, count in files["read"].items()]
    rows += [["left out by the recipe", f"{files['excluded']:,}", ""]] if files["excluded"] else []
    lost = files["lost"]
    if lost["files"]:
        about = f"about {lost['records']:,} records: " + ", ".join(lost["files"][:3])
        rows.append(["damaged or cut", f"{len(lost['files']):,}", about])
    rows += [
        [f"not read: {kind}", f"{entry['files']:,}", ", ".join(entry["examples"])]
        for kind, entry in files["not_read"].items()
    ]
    lead = "; ".join(files["notes"]) or "Pictures and videos that records name are not listed."
    return {"Files": section("Files", lead, table(["files", "number", "such as"], rows, numeric=[1]))}


def _need(card: Mapping[str, Any], keys: Sequence[str]) -> None:
    missing = [key for key in keys if key not in card]
    if missing:
        raise StoreError(
            f"A card of schema {card.get('schema')!r} lacks {', '.join(missing)}.",
            "Every card of its kind has them.",
            "Run the stage that wrote it again.",
        )


def _read_card(folder: Folder) -> dict[str, Any]:
    try:
        return json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise StoreError(
            f"{folder} is not a finished artifact.",
            f"{CARD} cannot be read ({cause(error)}).",
            "Run the stage that writes it.",
        ) from error
