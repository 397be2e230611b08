"""Parts of a pack artifact's pages: fill of both budgets beside the best possible, and the mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.cards.sequence_chart import fill_histogram, meter, share_bar
from pipelines.html.layout import figure, section, table, tile, tiles
from pipelines.html.tags import Html, tag
from pipelines.text_format import number

BUDGETS = {"text": "model", "image": "video"}
"""Budget → colour class."""
KINDS = {"image": "pictures", "video": "videos"}
MEASURES = ("samples", "text_tokens", "image_tokens")


def pack_tiles(card: Mapping[str, Any]) -> Html:
    """The artifact at a glance."""
    over = card["sequences"] / max(card["lower_bound"], 1) - 1
    samples = sum(source["samples"] for source in card["sources"].values())
    return tiles(
        tile(
            number(card["sequences"]), "sequences", f"{over:.2%} above the bound of {card['lower_bound']:,}"
        ),
        tile(number(samples), "samples packed", f"{samples / max(card['sequences'], 1):.1f} per sequence"),
        tile(number(card["text_tokens"]), "text tokens", _mean(card, "text_tokens")),
        tile(number(card["image_tokens"]), "image tokens", _mean(card, "image_tokens")),
    )


def budget_line(card: Mapping[str, Any]) -> str:
    """The budgets of a sequence, as a sentence."""
    budget, video = card["budget"], card["budget"].get("video")
    line = f"Sequences of up to {budget['text']:,} text and {budget['image']:,} image tokens"
    if video and card["by_kind"]["video"]["sequences"]:
        line += f"; with a video, {video['text']:,} and {video['image']:,}"
    return f"{line}."


def fill_section(card: Mapping[str, Any]) -> Html:
    """Fill of both budgets, by kind, beside the fill that the fewest possible sequences would have."""
    lead = (
        "Samples share sequences under two budgets; a video has a sequence of its own. No packing needs "
        "fewer sequences than tokens divided by budget, the larger of the two: the stroke marks the fill "
        "that this many sequences would have. Only the scarcer budget can be full."
    )
    rows = []
    for kind, own in card["by_kind"].items():
        if not own["sequences"]:
            continue
        ratio = own["sequences"] / max(own["lower_bound"], 1)
        for budget, style in BUDGETS.items():
            reached = own["fill"][budget]
            tip = f"{own['sequences']:,} sequences, at best {own['lower_bound']:,}"
            rows.append(
                meter(f"{KINDS.get(kind, kind)}, {budget}", reached, reached * ratio, tip, style=style)
            )
    legend = tag("p", tag("span", tag("i", class_="key line"), "best possible"), class_="legend")
    return section("Fill", lead, figure("Budgets by kind of sequence", *rows, legend), fill_histograms(card))


@dataclass(frozen=True, slots=True)
class Share:
    """A source's share of a mixture.

    Attributes:
        source: Its name.
        asked: Share that the recipe requests; ``None`` where it requests none.
        realised: Share of what was packed.
    """

    source: str
    asked: float | None
    realised: float


def shares(card: Mapping[str, Any]) -> list[Share]:
    """The sources' shares, in the measure of `basis`."""
    measure, asked = basis(card), (card.get("mixture") or {}).get("sources", {})
    total = sum(own[measure] for own in card["sources"].values())
    return [
        Share(name, (asked.get(name) or {}).get("asked"), own[measure] / max(total, 1))
        for name, own in card["sources"].items()
    ]


def basis(card: Mapping[str, Any]) -> str:
    """The measure of shares, as the mixture names it: an item of `MEASURES`, by default ``samples``."""
    return (card.get("mixture") or {}).get("measure", "samples")


def mixture_section(card: Mapping[str, Any]) -> Html:
    """Samples and tokens of each source, and its requested share beside the realised one."""
    lead = "What each source contributes to the sequences, repeated samples counted as often as they occur."
    rows = [
        [
            share.source,
            *(f"{card['sources'][share.source][measure]:,}" for measure in MEASURES),
            "" if share.asked is None else f"{share.asked:.2%}",
            f"{share.realised:.2%}",
            share_bar(share.asked, share.realised),
        ]
        for share in shares(card)
    ]
    of = basis(card).replace("_", " ")
    head = ["source", "samples", "text tokens", "image tokens", "asked", f"share of {of}", ""]
    return section("Mixture", lead, table(head, rows, numeric=range(1, 6)))


def videos_section(card: Mapping[str, Any]) -> Html:
    """What was done to fit videos to their budget; empty where the artifact has none."""
    rows = [[source, *cells] for source, cells in video_cells(card).items()]
    if not rows:
        return Html()
    lead = (
        "A video with a question that is over its image budget gets smaller frames, then fewer; a live "
        "stream is cut into windows. Each is counted once, whatever the mixture."
    )
    return section("Videos", lead, table(["source", *VIDEO_COLUMNS], rows, numeric=[1]))


VIDEO_COLUMNS = ("videos", "smaller frames", "fewer frames", "cut into windows", "silent streams")
_SIZES_SHOWN = 3


def video_cells(card: Mapping[str, Any]) -> dict[str, list[str]]:
    """Source → its row under `VIDEO_COLUMNS`, in words; sources without videos have none."""
    found = {}
    for source, own in card.get("videos", {}).items():
        sizes = [f"{count:,} of {size}" for size, count in own["sizes"].items()]
        shown = ", ".join([*sizes[:_SIZES_SHOWN], *(["…"] if len(sizes) > _SIZES_SHOWN else [])])
        found[source] = [
            f"{own['videos']:,}",
            f"{own['smaller']:,} ({shown})" if own["smaller"] else "0",
            f"{own['fewer']:,} (down to {own['least_kept']:.0%})" if own["fewer"] else "0",
            f"{own['cut']:,} into {own['windows']:,}" if own["cut"] else "0",
            f"{own['silent']:,}",
        ]
    return found


def fill_histograms(card: Mapping[str, Any]) -> Html:
    """Histograms of the sequences' fill, one per budget; empty where the card has none."""
    drawings = []
    for budget, style in BUDGETS.items():
        found = card.get("histograms", {}).get(budget)
        if found:
            title = f"Sequences by fill of the {budget} budget"
            chart = fill_histogram(found["counts"], found["edges"], style=style, label=title)
            drawings.append(figure(title, chart))
    return tag("div", *drawings, class_="columns") if drawings else Html()


def _mean(card: Mapping[str, Any], measure: str) -> str:
    return f"{number(card[measure] / max(card['sequences'], 1))} per sequence"
