"""What ``casa data inspect`` prints: a packed sequence, or a row of a clean artifact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from casa_core.printable import printable
from pipelines.data.pack.sequence_view import DocumentView, PictureView, SequenceView
from pipelines.data.store.rows import Row
from pipelines.text_format import byte_size

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
"""Colours of the windows, in turn."""
_BAR = 32
_SHOWN_FRAMES = 3


def show_sequence(view: SequenceView) -> None:
    """Print a sequence: its budgets, then each document with its pictures and its text by window."""
    console, count = Console(markup=False, highlight=False), len(view.documents)
    console.print(
        Text.assemble(
            (f"sequence {view.number}", "bold"),
            f"  {view.kind}, {count} document{'s' if count != 1 else ''}, ",
            f"{view.trained_tokens:,} of {view.text_tokens:,} text tokens trained",
        )
    )
    for name, used, budget in (
        ("text", view.text_tokens, view.text_budget),
        ("image", view.image_tokens, view.image_budget),
    ):
        full = round(_BAR * used / max(budget, 1))
        bar = Text("█" * full, "green").append("░" * (_BAR - full), "dim")
        console.print(
            Text(f"  {name:<6}").append_text(bar).append(f"  {used:,} of {budget:,} ({used / budget:.1%})")
        )
    legend = Text("  ").append("trained", "bold underline").append("  ").append("masked", "dim")
    console.print(legend.append("  [n] window: the images before it and the text up to the next ones"))
    for number, document in enumerate(view.documents):
        console.print()
        _show_document(console, number, document)


def _show_document(console: Console, number: int, document: DocumentView) -> None:
    title = Text.assemble(
        (f"document {number}", "bold"), f"  {document.source}  {printable(document.sample_id)}"
    )
    if document.part:
        title.append(f"  part {document.part}")
    if document.occurrence:
        title.append(f"  occurrence {document.occurrence}")
    title.append(
        f"  tokens {document.start:,} to {document.start + document.text_tokens:,}, "
        f"{document.image_tokens:,} of images",
        "dim",
    )
    console.print(title, soft_wrap=True)
    by_window: dict[int, list[PictureView]] = {}
    for picture in document.pictures:
        by_window.setdefault(picture.window, []).append(picture)
    for window, spans in groupby(document.spans, key=lambda span: span.window):
        colour = COLOURS[(window - 1) % len(COLOURS)] if window else "white"
        line = Text("  ").append(f"[{window}]" if window else "[ ]", f"bold {colour}")
        if window in by_window:
            line.append(f" {_pictures(by_window[window])}", colour)
        line.append(" ")
        for span in spans:
            shown = printable(span.text).replace("\n", "⏎")
            line.append(shown, "bold underline" if span.trained else "dim")
        console.print(line)


def _pictures(pictures: Sequence[PictureView]) -> str:
    """``▣ 640x480 → 616x448, 352 tokens`` per picture; only the first few where there are many."""
    shown = []
    for picture in pictures[:_SHOWN_FRAMES]:
        time = "" if picture.timestamp is None else f"{picture.timestamp:.1f} s "
        sizes = [f"{width}x{height}" for width, height in (picture.original, picture.resized)]
        size = sizes[0] if sizes[0] == sizes[1] else " → ".join(sizes)
        shown.append(f"▣ {time}{size}, {picture.tokens} tokens")
    more = len(pictures) - len(shown)
    return " ".join(shown) + (f" and {more} more" if more else "")


def show_row(number: int, total: int, row: Row, sizes: Sequence[int]) -> None:
    """Print a row of a clean artifact: its media, its parts in order, its metadata.

    Args:
        number, total: Which row of how many.
        row: Without its media's bytes.
        sizes: Size of each of its media, bytes.
    """
    console = Console(markup=False, highlight=False)
    console.print(
        Text.assemble(
            (f"row {number}", "bold"), f" of {total:,}  {row['source']}  {printable(row['sample_id'])}"
        ),
        soft_wrap=True,
    )
    for index, (media, size) in enumerate(zip(row["media"], sizes, strict=True)):
        phash = f"  phash {media['phash']:016x}" if media.get("phash") is not None else ""
        console.print(
            f"  media {index}  {media['kind']}  {media['width']}x{media['height']}  {byte_size(size)}"
            f"  sha256 {media['sha256'][:16]}…{phash}",
            soft_wrap=True,
        )
    for part in row["parts"]:
        head = Text(f"  {part['role']:<9} ", "cyan")
        if part["kind"] == "image":
            time = "" if part["timestamp"] is None else f" at {part['timestamp']:.2f} s"
            console.print(head.append(f"▣ media {part['media']}{time}", "magenta"))
        else:
            shown = printable(part["text"]).replace("\n", "⏎")
            console.print(head.append(shown, "bold underline" if part["trained"] else ""))
    if row["meta"]:
        for name, value in sorted(json.loads(row["meta"]).items()):
            shown = printable(json.dumps(value, ensure_ascii=False))
            console.print(Text(f"  {printable(name)}: ", "dim").append(shown))
