"""What ``casa data plan`` prints: a forecast of tokens, bytes and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.cost.forecast import NETWORK_SHARE, PACKING_OVERHEAD, Budgets, Cluster, Estimate, Forecast
from pipelines.data.read.source.splits import Inventory
from pipelines.text_format import byte_size, duration, number

SHOWN_FILES = 8
_MEASURES = ("images", "text_tokens", "image_tokens", "read_bytes", "clean_bytes", "pack_bytes")


def show_forecast(
    found: Forecast, budgets: Budgets, cluster: Cluster, inventories: Mapping[str, Inventory]
) -> None:
    """Print a forecast: each source, totals with their ranges, its files, samples and rates behind them."""
    console = Console(markup=False, highlight=False)
    console.print(f"{found.name}\n", style="bold")
    console.print(_counts(found))
    console.print(_bytes(found))
    console.print(_totals(found))
    console.print(
        f"Sequences hold up to {budgets.text:,} text and {budgets.image:,} image tokens; with pictures, "
        f"text is {found.fill['text']:.1%} full and images {found.fill['image']:.1%}. "
        f"Videos: {number(found.video_sequences)}, each alone.",
    )
    where = f"{cluster.nodes} x {cluster.cpus_per_node} cores, {cluster.network_gbps:g} Gbit/s per machine"
    console.print(f"\nTimes are of {where}:")
    for name, stage in (("clean", found.clean), ("pack", found.pack)):
        alone = f"cores alone {duration(stage.compute.value)}, network alone {duration(stage.network.value)}"
        console.print(f"  {name}: bound by the {stage.bound_by} ({alone})")
    _files(console, inventories)
    _basis(console, found, cluster)


def _files(console: Console, inventories: Mapping[str, Inventory]) -> None:
    """Which files each split has, and which are not read."""
    if inventories:
        console.print("\nFiles", style="bold")
    for source, inventory in inventories.items():
        for split, names in inventory.splits.items():
            size = byte_size(sum(inventory.sizes[name] for name in names))
            console.print(f"  {source}, {split}: {len(names)} ({size}){_listed(names)}")
        if inventory.excluded:
            count = len(inventory.excluded)
            console.print(f"  {source}, left out by the recipe: {count}{_listed(inventory.excluded)}")
        if inventory.summary():
            console.print(f"  {source}, {inventory.summary()}{_listed(inventory.unread)}")


def _listed(names: Sequence[str]) -> str:
    shown = [*names[:SHOWN_FILES], *(["…"] if len(names) > SHOWN_FILES else [])]
    return f": {', '.join(shown)}" if shown else ""


def _basis(console: Console, found: Forecast, cluster: Cluster) -> None:
    console.print("\nBasis", style="bold")
    for source in found.sources:
        console.print(f"  {source.name}: {source.basis or 'as the listing says'}")
    rates = cluster.rates
    shown = {
        "clean, pictures  {} megapixels": rates.clean_megapixels,
        "clean, frames    {} megapixels": rates.video_megapixels,
        "pack, encoding   {} text tokens": rates.encode_tokens,
        "pack, placing    {} samples": rates.pack_samples,
    }
    console.print("Rates of one core, per second", style="bold")
    for text, rate in shown.items():
        console.print(f"  {text.format(number(rate.value))}: {rate.source}")
    console.print(
        f"Counted on: {NETWORK_SHARE:.0%} of the network's line rate (assumed), cores that all work, "
        f"sequences {PACKING_OVERHEAD:.1%} above the lower bound. Not counted: start-up, stragglers, "
        "filters, samples over a budget. So times are the least to expect.",
        style="dim",
    )


def forecast_as_json(
    found: Forecast, budgets: Budgets, cluster: Cluster, inventories: Mapping[str, Inventory]
) -> dict[str, Any]:
    """A forecast as plain JSON; each estimate as ``value``, ``low``, ``high``; each file's name."""
    values = asdict(found)
    for stage, own in (("clean", found.clean), ("pack", found.pack)):
        values[stage]["bound_by"] = own.bound_by
    totals = {measure: asdict(found.total(measure)) for measure in _MEASURES}
    files = {source: asdict(inventory) for source, inventory in inventories.items()}
    return {
        "budgets": asdict(budgets),
        "cluster": asdict(cluster),
        "totals": totals,
        "files": files,
        **values,
    }


def _counts(found: Forecast) -> Table:
    table = _table("samples", "records", "packed", "images", "text tok.", "image tok.")
    for source in found.sources:
        values = (source.images, source.text_tokens, source.image_tokens)
        counts = (number(estimate.value) for estimate in values)
        table.add_row(source.name, number(source.rows), number(source.samples), *counts)
    return table


def _bytes(found: Forecast) -> Table:
    table = _table("bytes", "to read", "clean artifact", "part of the pack")
    for source in found.sources:
        values = (source.read_bytes, source.clean_bytes, source.pack_bytes)
        table.add_row(source.name, *(byte_size(estimate.value) for estimate in values))
    return table


def _totals(found: Forecast) -> Table:
    table = _table("in all", "", "from", "to")
    lines: list[tuple[str, Estimate, Callable[[float], str]]] = [
        ("images", found.total("images"), number),
        ("text tokens", found.total("text_tokens"), number),
        ("image tokens", found.total("image_tokens"), number),
        ("sequences", found.sequences, number),
        ("sequences at best", found.lower_bound, number),
        ("to read", found.total("read_bytes"), byte_size),
        ("to store, clean", found.total("clean_bytes"), byte_size),
        ("to store, pack", found.total("pack_bytes"), byte_size),
        ("time to clean", found.clean.seconds, duration),
        ("time to pack", found.pack.seconds, duration),
    ]
    for name, estimate, unit in lines:
        between = ("", "") if estimate.low == estimate.high else (unit(estimate.low), unit(estimate.high))
        table.add_row(name, unit(estimate.value), *between)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column(title, no_wrap=True, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
