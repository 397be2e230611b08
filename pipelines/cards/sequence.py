"""One packed sequence as an HTML page: text and pictures, one attention window after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from casa_core.media.decode import decode_pictures
from pipelines.cards.gallery import thumbnail
from pipelines.cards.sequence_chart import meter
from pipelines.data.pack.sequence_view import DocumentView, PictureView, SequenceView
from pipelines.data.store.readers import CleanReader
from pipelines.html.document import asset, document, script
from pipelines.html.layout import figure, section
from pipelines.html.tags import Html, tag

SIDE = 260
"""Longest side of an embedded picture, pixels."""


def sequence_page(view: SequenceView, clean: Mapping[str, CleanReader]) -> str:
    """The page as one HTML document.

    Args:
        view: The sequence.
        clean: Source → train split of its clean artifact.
    """
    count = len(view.documents)
    trained = f"{view.trained_tokens:,} of {view.text_tokens:,} text tokens are trained"
    header = tag(
        "header",
        tag("p", f"Packed sequence · {view.kind}", class_="kicker"),
        tag("h1", f"Sequence {view.number}"),
        tag("p", f"{count} document{'s' if count != 1 else ''}; {trained}.", class_="subtitle"),
        _budgets(view),
    )
    documents = [_document(number, own, clean) for number, own in enumerate(view.documents)]
    footer = tag("footer", tag("p", "Text as its tokens decode, special ones included."))
    style = asset("pipelines.html", "report.css") + asset("pipelines.cards", "card.css")
    return document(f"sequence {view.number}", style, header, tag("main", *documents), footer, script())


def _budgets(view: SequenceView) -> Html:
    held = (
        ("text", view.text_tokens, view.text_budget, "model"),
        ("image", view.image_tokens, view.image_budget, "video"),
    )
    rows = [
        meter(f"{name} budget", own / max(budget, 1), None, f"{own:,} of {budget:,} tokens", style=style)
        for name, own, budget, style in held
    ]
    return figure("Budgets", *rows)


def _document(number: int, document: DocumentView, clean: Mapping[str, CleanReader]) -> Html:
    pictures: dict[int, list[Html]] = {}
    thumbnails = _thumbnails(document.pictures, clean)
    for picture in document.pictures:
        pictures.setdefault(picture.window, []).append(_picture(picture, thumbnails[picture]))
    windows = []
    for window, spans in groupby(document.spans, key=lambda span: span.window):
        words = [
            tag(
                "span",
                span.text,
                class_=(state := "trained" if span.trained else "masked"),
                data_tip=f"{span.tokens} tokens, {state}",
            )
            for span in spans
        ]
        name = f"window {window}" if window else "before any image"
        images = pictures.get(window, [])
        windows.append(
            tag(
                "article",
                tag("small", name),
                tag("div", *images, class_="inputs") if images else "",
                tag("p", *words, class_="tokens"),
                class_="window",
            )
        )
    facts = [
        f"{document.source} · {document.sample_id}",
        f"part {document.part}" if document.part else "",
        f"occurrence {document.occurrence}" if document.occurrence else "",
        f"{document.text_tokens:,} text and {document.image_tokens:,} image tokens",
    ]
    return section(f"Document {number}", " · ".join(fact for fact in facts if fact), *windows)


def _thumbnails(pictures: Sequence[PictureView], clean: Mapping[str, CleanReader]) -> dict[PictureView, Html]:
    """Each picture, small."""
    named = {(picture.source, picture.row, picture.media) for picture in pictures}
    data = {(source, row, media): clean[source].media(row, media) for source, row, media in named}
    decoded = decode_pictures([(data[one.source, one.row, one.media], one.timestamp) for one in pictures])
    return {
        one: thumbnail(pixels, alt=f"media {one.media} of row {one.row}", side=SIDE)
        for one, pixels in zip(pictures, decoded, strict=True)
    }


def _picture(picture: PictureView, shown: Html) -> Html:
    time = "" if picture.timestamp is None else f"{picture.timestamp:.2f} s · "
    (width, height), (new_width, new_height) = picture.original, picture.resized
    caption = f"{time}{width} by {height} → {new_width} by {new_height} · {picture.tokens} tokens"
    return tag("div", shown, tag("small", caption))
