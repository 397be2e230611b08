"""``casa data plan``'s answer, for people and for scripts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.data.forecast import NETWORK_SHARE, PACKING_OVERHEAD, Budgets, Cluster, Estimate, Forecast
from pipelines.report.scale import byte_size, duration, number

_MEASURES = ("images", "text_tokens", "image_tokens", "read_bytes", "clean_bytes", "pack_bytes")


def show_plan(found: Forecast, budgets: Budgets, cluster: Cluster) -> None:
    """Prints a forecast: one line a source, then totals with their ranges, then what it rests on."""
    console = Console()
    console.print(_sources(found))
    console.print(_totals(found, budgets, cluster))
    console.print("Basis", style="bold")
    for source in found.sources:
        console.print(f"  {source.name}: {source.basis or 'as the listing says'}", highlight=False)
    rates = cluster.rates
    told = (
        (f"clean  {number(rates.clean_megapixels.value)} megapixels", rates.clean_megapixels.source),
        (f"encode {number(rates.encode_tokens.value)} text tokens", rates.encode_tokens.source),
        (f"pack   {number(rates.pack_samples.value)} samples", rates.pack_samples.source),
    )
    console.print("Rates of one core, a second", style="bold")
    for rate, source in told:
        console.print(f"  {rate}: {source}", highlight=False)
    console.print(
        f"Counted on: {NETWORK_SHARE:.0%} of the network's line rate (assumed), cores that all work, "
        f"sequences {PACKING_OVERHEAD:.1%} above the lower bound. Start-up, stragglers and filters are not counted.",
        style="dim",
        highlight=False,
    )


def plan_as_json(found: Forecast, budgets: Budgets, cluster: Cluster) -> dict[str, Any]:
    """The same as plain JSON; estimates as ``value``, ``low``, ``high``."""
    values = asdict(found)
    for stage, own in (("clean", found.clean), ("pack", found.pack)):
        values[stage]["bound_by"] = own.bound_by
    totals = {measure: asdict(found.total(measure)) for measure in _MEASURES}
    return {"budgets": asdict(budgets), "cluster": asdict(cluster), "totals": totals, **values}


def _sources(found: Forecast) -> Table:
    table = Table(box=None, header_style="bold", title=found.name, title_justify="left")
    table.add_column("source")
    for name in ("records", "packed", "pictures", "text tok.", "image tok.", "read", "clean", "pack"):
        table.add_column(name, justify="right", no_wrap=True)
    for source in found.sources:
        values = [getattr(source, measure).value for measure in _MEASURES]
        table.add_row(
            source.name,
            number(source.rows),
            number(source.samples),
            *(number(value) for value in values[:3]),
            *(byte_size(value) for value in values[3:]),
        )
    return table


def _totals(found: Forecast, budgets: Budgets, cluster: Cluster) -> Table:
    table = Table(box=None, show_header=False)
    for name in ("what", "value", "range", "note"):
        table.add_column(name, no_wrap=name != "note", justify="right" if name == "value" else "left")

    def line(name: str, estimate: Estimate, unit: Any, note: str = "") -> None:
        exact = estimate.low == estimate.high
        between = "" if exact else f"{unit(estimate.low)} … {unit(estimate.high)}"
        table.add_row(name, unit(estimate.value), between, note)

    full = f"text {found.fill['text']:.1%} and images {found.fill['image']:.1%} full with pictures"
    held = f"of up to {budgets.text:,} text and {budgets.image:,} image tokens; {full}"
    line("pictures", found.total("images"), number, "frames of videos included")
    line("text tokens", found.total("text_tokens"), number)
    line("image tokens", found.total("image_tokens"), number)
    line("sequences", found.sequences, number, held)
    line("at best", found.lower_bound, number, f"videos: {number(found.video_sequences)}, each alone")
    line("to read", found.total("read_bytes"), byte_size)
    line("to store, clean", found.total("clean_bytes"), byte_size)
    line("to store, pack", found.total("pack_bytes"), byte_size)
    where = f"{cluster.nodes} x {cluster.cpus_per_node} cores, {cluster.network_gbps:g} Gbit/s each"
    for name, stage in (("clean", found.clean), ("pack", found.pack)):
        alone = f"cores alone {duration(stage.compute.value)}, network alone {duration(stage.network.value)}"
        line(f"time, {name}", stage.seconds, duration, f"{where}; {alone}")
    return table
