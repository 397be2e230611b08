"""The page of ``casa inspect``: facts of a checkpoint, its answers, and its attention maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from casa_core.analysis.attention_stats import AttentionTable, KindMean, Kinds
from casa_core.analysis.inspection import END, NEXT_FRAME, SILENT, GeneratedToken, InspectedSample
from casa_core.analysis.maps import ImageMap
from casa_core.errors import CasaError
from casa_core.media.decode import Rgb
from pipelines.cards.attention import (
    LABELS,
    heat,
    heat_legend,
    kinds_chart,
    kinds_legend,
    share_rows,
)
from pipelines.html.document import asset, document, script
from pipelines.html.layout import figure, fold, section, table, tile, tiles
from pipelines.html.pictures import data_uri
from pipelines.html.tags import Html, tag
from pipelines.text_format import number

TILES = ("parameters", "fused layers", "language model", "pictures")
"""The facts at the top."""
SIDE = 360
"""Longest side of an embedded picture, pixels."""
MOST_MAPS = 48
"""Words of one conversation whose heat is shown."""
MASKED = {
    None: "nothing",
    "self": "itself",
    "random_text": "a random text token",
    "random_token": "a random token",
}
"""Kind of masking → label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Content of the page.

    Attributes:
        name: The checkpoint's name.
        headline: What it is, in a sentence.
        facts: Label → value.
        inspected: The conversations.
        table: Attention by kind over all of them; ``None`` where the model cannot be watched.
        no_maps, no_masking: Why there are none; ``None`` where there are.
    """

    name: str
    headline: str
    facts: Mapping[str, str]
    inspected: Sequence[InspectedSample]
    table: AttentionTable | None
    no_maps: CasaError | None
    no_masking: CasaError | None


def render(inspection: Inspection) -> str:
    """The page as one HTML document; it needs no network."""
    style = (
        asset("pipelines.html", "report.css")
        + asset("pipelines.cards", "inspection.css")
        + _picture_styles(inspection.inspected)
    )
    shown = [(name, inspection.facts[name]) for name in TILES if name in inspection.facts]
    header = tag(
        "header",
        tag("p", "Model inspection", class_="kicker"),
        tag("h1", inspection.name),
        tag("p", inspection.headline, class_="subtitle"),
        tiles(*(tile(value, name) for name, value in shown)),
    )
    sections = [
        *(_conversation(one, n) for n, one in enumerate(inspection.inspected)),
        _by_kind(inspection),
        section("The checkpoint", "As its files state it.", table(("", ""), list(inspection.facts.items()))),
    ]
    body = (header, tag("main", *sections), tag("footer"), script())
    return document(f"{inspection.name}: inspected", style, *body)


def _conversation(one: InspectedSample, index: int) -> Html:
    """One conversation, the effect of masking and the attention maps, side by side as far as they fit."""
    blocks = [_exchange(one, index)]
    if one.masked:
        blocks.append(_masked(one))
    looks = [] if one.maps is None else [_heat_maps(one, index)]
    if len(one.pictures) == 1 and not one.masked:
        blocks, looks = blocks + looks, []
    body = [tag("div", *blocks, class_="columns"), *looks]
    if one.maps is not None and len(one.pictures) == 1:
        body.append(_layer_maps(one, index))
    shown = "" if one.sequence.image_tokens else " The model was not shown it."
    lead = f"{one.name}.{shown} Words are the likeliest ones; nothing is sampled."
    return section(one.question or "Watched without a question", lead, *body)


def _exchange(one: InspectedSample, index: int) -> Html:
    if len(one.pictures) == 1:
        picture = tag(
            "div",
            class_=f"picture p{index}-0",
            style=_aspect(one.pictures[0]),
            role="img",
            aria_label=one.name,
        )
        return tag("figure", picture, tag("p", one.answer or "(nothing)", class_="reply"), class_="exchange")
    words: list[list[str]] = [[] for _ in one.pictures]
    for token in one.generated:
        if token.text not in (END, NEXT_FRAME, SILENT):
            words[token.picture].append(token.text)
    frames = [
        tag(
            "li",
            tag(
                "div", class_=f"picture p{index}-{n}", style=_aspect(rgb), role="img", aria_label=f"frame {n}"
            ),
            tag("span", "".join(words[n]).strip() or "·"),
        )
        for n, rgb in enumerate(one.pictures)
    ]
    return tag("figure", tag("ol", *frames, class_="frames"), class_="exchange")


def _masked(one: InspectedSample) -> Html:
    rows = [
        (
            tag("b", MASKED[answer.what]) if answer.what is None else MASKED[answer.what],
            answer.text or "(nothing)",
            f"{answer.log_likelihood:.4f}",
        )
        for answer in one.masked
    ]
    return figure(
        "With attention masked in every fusion layer",
        table(("no token attends to", "then it says", "log-likelihood"), rows, numeric=[2]),
        note="Table 8 of the paper, on this conversation. Log-likelihood: of what was said with nothing "
        "masked, in nats per token; the further below the first row, the more the masking disturbs.",
    )


def _because(refused: CasaError | None) -> Html:
    assert refused is not None, "what is missing has a reason"
    return tag("p", f"{refused.what} {refused.why}", class_="note because")


def _heat_maps(one: InspectedSample, index: int) -> Html:
    assert one.maps is not None
    cards = [
        _heat_card(
            _word(token), images[token.picture], one.pictures[token.picture], f"p{index}-{token.picture}"
        )
        for token, images in zip(one.generated, one.maps.tokens, strict=True)
        if token.picture in images
    ]
    note = (
        "Attention of the token before each word, where the word is chosen: mean over heads and fused layers."
    )
    if len(cards) > MOST_MAPS:
        note += f" The first {MOST_MAPS} of {len(cards)} are shown."
    return figure(
        "Where it looked for each word",
        heat_legend(),
        tag("div", *cards[:MOST_MAPS], class_="looks"),
        note=note,
    )


def _layer_maps(one: InspectedSample, index: int) -> Html:
    assert one.maps is not None
    cards = [
        _heat_card(f"layer {layer}", images[0], one.pictures[0], f"p{index}-0")
        for layer, images in one.maps.layers.items()
        if 0 in images
    ]
    return fold("Layer by layer, over the whole answer", tag("div", *cards, class_="looks"))


def _heat_card(title: object, weights_RC: ImageMap, picture: Rgb, style: str) -> Html:
    total = float(weights_RC.sum())
    peak = float(weights_RC.max()) / (total / weights_RC.size) if total else 0.0
    share = "" if total > 0.999 else f"{total:.0%} on it, "
    what = f"{total:.0%} of its attention is on the picture; its peak is {peak:.1f} times the average there"
    return tag(
        "div",
        tag("b", title),
        tag(
            "div",
            tag("div", class_=f"picture grey {style}"),
            heat(weights_RC, alt=what),
            class_="overlay",
            style=_aspect(picture),
        ),
        tag("small", f"{share}peak {peak:.1f}-fold"),
        class_="look",
        data_tip=what,
        tabindex="0",
    )


def _word(token: GeneratedToken) -> object:
    stop = token.text in (END, NEXT_FRAME, SILENT)
    return tag("i", token.text) if stop else token.text.strip() or repr(token.text)


def _by_kind(inspection: Inspection) -> Html:
    title = "Attention by kind of token"
    if inspection.table is None:
        return section(title, _because(inspection.no_maps))
    means = inspection.table
    per_token = tag("span", "The weight of one token ", tag("small", "(mean, logarithmic)"))
    pictures = "a picture" if means.images == 1 else f"one of {means.images} pictures"
    note = (
        f"Figure 7 of the paper, for the {means.queries} text tokens that see {pictures}, averaged over "
        f"heads and {len(means.layers)} fused layers. Image tokens are in reading order, {means.group} to a "
        "point. Dashed: what every token would get, were attention even."
    )
    body = [figure(per_token, tag("div", kinds_chart(means), class_="scroll"), note=note)]
    if means.whole.itself.per_token is not None:
        rows = [
            (f"layer {layer}", *(_weight(kinds, name) for name in LABELS))
            for layer, kinds in means.layers.items()
        ]
        body += [
            figure("How attention is divided", kinds_legend(means), share_rows(means)),
            fold("Weight of one token, by layer", table(("", *LABELS.values()), rows, numeric=range(1, 5))),
        ]
    if inspection.no_masking is not None:
        body.append(_because(inspection.no_masking))
    return section(
        title, "What a text token's attention in the fusion layers is made of, before any gate.", *body
    )


def _weight(kinds: Kinds, name: str) -> str:
    mean: KindMean = getattr(kinds, name)
    return "" if mean.per_token is None else number(mean.per_token)


def _picture_styles(inspected: Sequence[InspectedSample]) -> str:
    """Each picture once, as a background that any number of cards share."""

    def rules() -> Iterator[str]:
        for index, one in enumerate(inspected):
            for n, rgb in enumerate(one.pictures):
                yield f".p{index}-{n} {{ background-image: url({data_uri(rgb, side=SIDE)}); }}"

    return "\n".join(rules())


def _aspect(rgb: Rgb) -> str:
    height, width = rgb.shape[:2]
    return f"aspect-ratio: {width} / {height}"
