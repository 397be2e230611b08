"""Histograms of sample sizes for the data cards, over evenly spaced rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Protocol

from pipelines.cards.gallery import spaced
from pipelines.cards.sequence_chart import log_histogram, powers_of_two
from pipelines.data.pack.sequences import documents_of
from pipelines.data.store.readers import CleanReader
from pipelines.data.store.rows import Row
from pipelines.html.layout import figure
from pipelines.html.tags import Html, tag

ROWS, RUN = 2048, 32
"""Rows read, in evenly spaced runs of neighbours, which lie in few record batches: the time that a card takes
does not grow with the artifact."""
_STYLES = {"text": "model", "image": "video"}


class Rows(Protocol):
    """Rows by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Row: ...


def clean_histograms(reader: CleanReader) -> tuple[str, Html]:
    """Sizes of pictures, text and conversations of a clean artifact.

    Returns:
        The rows that were read, as text, and the histograms.
    """
    rows = [reader.without_bytes(number) for number in sampled(len(reader))]
    kilopixels = [
        media["width"] * media["height"] / 1000
        for row in rows
        for media in row["media"]
        if media["kind"] == "image"
    ]
    texts = [[part for part in row["parts"] if part["kind"] == "text"] for row in rows]
    characters = [sum(len(part["text"]) for part in own) for own in texts]
    turns = [sum(part["trained"] for part in own) for own in texts]
    frames = [sum(part["timestamp"] is not None for part in row["parts"]) for row in rows]
    measures = [
        ("Pictures by size", kilopixels, "video", "thousand pixels"),
        ("Videos by frames used", [count for count in frames if count], "video", "frames"),
        ("Samples by length of text", characters, "model", "characters"),
        ("Samples by trained turns", turns, "model", "turns"),
    ]
    drawings = [
        figure(title, log_histogram(powers_of_two(values), style=style, unit=unit, label=title))
        for title, values, style, unit in measures
        if values
    ]
    return _scope(len(rows), len(reader)), tag("div", *drawings, class_="columns")


def token_histograms(reader: Rows, sources: Sequence[str]) -> tuple[str, Html]:
    """Text and image tokens of the documents of each source of a pack artifact.

    Returns:
        The sequences that were read, as text, and the histograms, two per source.
    """
    text: dict[str, list[int]] = defaultdict(list)
    image: dict[str, list[int]] = defaultdict(list)
    chosen = sampled(len(reader))
    for source, text_tokens, image_tokens in _documents(reader, chosen):
        text[source].append(text_tokens)
        image[source].append(image_tokens)
    drawings = []
    for source in sources:
        for measure, found in (("text", text[source]), ("image", image[source])):
            if found:
                title = f"{source}: {measure} tokens of a document"
                chart = log_histogram(
                    powers_of_two(found), style=_STYLES[measure], unit=f"{measure} tokens", label=title
                )
                drawings.append(figure(title, chart))
    return _scope(len(chosen), len(reader)), tag("div", *drawings, class_="columns")


def _documents(reader: Rows, chosen: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    for number in chosen:
        for document in documents_of(reader[number]):
            tokens = sum(image["tokens"] for image in document.images)
            yield document.source, len(document.input_ids), tokens


def sampled(total: int) -> list[int]:
    """Up to ``ROWS`` row numbers below ``total``, ascending: evenly spaced runs of ``RUN``."""
    if total <= ROWS:
        return list(range(total))
    runs = spaced(total // RUN, ROWS // RUN)
    return [run * RUN + offset for run in runs for offset in range(RUN)]


def _scope(read: int, total: int) -> str:
    runs = read // RUN
    return f"all {total:,}" if read == total else f"{read:,} of {total:,}, in {runs} evenly spaced runs"
