"""Sample pictures of the data cards: evenly spaced rows, shrunk and embedded in the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from casa_core.media.decode import Rgb, decode_image, decode_pictures
from pipelines.data.store.readers import CleanReader
from pipelines.data.store.rows import Row
from pipelines.html.pictures import picture
from pipelines.html.tags import Html, tag

PICTURES, CLIPS = 12, 3
"""Samples shown of one clean artifact: with still pictures, and with a video."""
FRAMES = 8
"""Frames shown of a clip."""
SIDE, FRAME_SIDE = 300, 168
"""Longest side of an embedded picture, and of a frame, pixels."""
MOST_PICTURES = 4
"""Pictures shown of one sample."""
_CHARACTERS = 220
_CANDIDATES = 48


def spaced(total: int, count: int) -> list[int]:
    """Up to ``count`` numbers below ``total``, evenly spaced and the same each time."""
    return [index * total // count for index in range(count)] if total > count else list(range(total))


def thumbnail(pixels: Rgb, *, alt: str, side: int) -> Html:
    """A JPEG of a uint8 array (height, width, 3) with a longest side of at most ``side`` pixels."""
    return picture(pixels, alt=alt, side=side, kind="jpeg", loading="lazy")


def gallery(reader: CleanReader, *, pictures: int = PICTURES, clips: int = CLIPS) -> Html:
    """Samples of a clean artifact: pictures or frames, with the texts that go with them."""
    rows = [(number, reader.without_bytes(number)) for number in spaced(len(reader), _CANDIDATES)]
    moving = [entry for entry in rows if _is_video(entry[1])]
    still = [entry for entry in rows if not _is_video(entry[1])]
    shots = [still_sample(reader, *still[at]) for at in spaced(len(still), pictures)]
    strips = [video_sample(reader, *moving[at]) for at in spaced(len(moving), clips)]
    return tag("div", tag("div", *shots, class_="shots") if shots else "", *strips)


def still_sample(reader: CleanReader, number: int, row: Row) -> Html:
    """One sample with still pictures or without any: its first question and answer."""
    shown = list(row_pictures(reader, number, row, side=SIDE, at_most=MOST_PICTURES))
    texts = [part for part in row["parts"] if part["kind"] == "text"]
    question = next((part["text"] for part in texts if not part["trained"]), "")
    answer = next((part["text"] for part in texts if part["trained"]), "")
    sizes = ", ".join(f"{media['width']} by {media['height']}" for media in row["media"][:MOST_PICTURES])
    turns = sum(part["trained"] for part in texts)
    facts = [f"row {number}", sizes or "no picture", f"{turns} turns" if turns > 1 else "", subset(row)]
    return tag(
        "article",
        tag("div", *shown, class_=f"pictures n{len(shown)}") if shown else "",
        tag("p", shortened(question), class_="question"),
        tag("p", shortened(answer), class_="answer"),
        tag("small", " · ".join(fact for fact in facts if fact)),
        class_="shot",
    )


def video_sample(reader: CleanReader, number: int, row: Row) -> Html:
    """One clip as a strip of frames, each with the words that follow it."""
    frames = _frames(row["parts"])
    chosen = [frames[at] for at in spaced(len(frames), FRAMES)]
    media = chosen[0][0]["media"]
    chosen = [entry for entry in chosen if entry[0]["media"] == media]
    cells = []
    video = reader.media(number, media)
    pictures = decode_pictures([(video, part["timestamp"]) for part, _ in chosen])
    for (part, words), pixels in zip(chosen, pictures, strict=True):
        time = f"{part['timestamp']:.1f} s"
        cells.append(
            tag("li", thumbnail(pixels, alt=f"frame at {time}", side=FRAME_SIDE), tag("time", time), words)
        )
    texts = [part for part in row["parts"] if part["kind"] == "text"]
    asked = next((part["text"] for part in texts if not part["trained"]), "")
    live = any(part["role"] == "assistant" for part, _ in frames)
    answer = "" if live else next((part["text"] for part in texts if part["trained"]), "")
    size = row["media"][media]
    facts = f"row {number} · {size['width']} by {size['height']} · {len(chosen)} of its {len(frames)} frames"
    return tag(
        "article",
        tag("p", shortened(asked), class_="question"),
        tag("ol", *cells, class_="frames"),
        tag("p", shortened(answer), class_="answer") if answer else "",
        tag("small", facts),
        class_="shot clipshot",
    )


def row_pictures(reader: CleanReader, number: int, row: Row, *, side: int, at_most: int) -> Iterator[Html]:
    """A row's first still pictures as thumbnails."""
    for index, media in enumerate(row["media"][:at_most]):
        if media["kind"] == "image":
            pixels = decode_image(reader.media(number, index))
            yield thumbnail(pixels, alt=f"picture {index + 1} of row {number}", side=side)


def row_thumbnail(readers: Mapping[str, CleanReader], source: str, number: int, *, side: int) -> Html:
    """A row's first still picture, or a video's first used frame; empty where it has none."""
    reader = readers[source]
    row = reader.without_bytes(number)
    for part in row["parts"]:
        if part["kind"] != "image":
            continue
        data, alt = reader.media(number, part["media"]), f"row {number} of {source}"
        return thumbnail(next(decode_pictures([(data, part["timestamp"])])), alt=alt, side=side)
    return Html()


def shortened(text: str, characters: int = _CHARACTERS) -> str:
    """A text's beginning, on one line, cut at a word."""
    flat = " ".join(text.split())
    if len(flat) <= characters:
        return flat
    head, _, _ = flat[:characters].rpartition(" ")
    return f"{head or flat[:characters]} …"


def subset(row: Row) -> str:
    """The ``subset`` in a row's metadata; empty where there is none."""
    meta: Any = json.loads(row["meta"]) if row["meta"] else {}
    return str(meta.get("subset", "")) if isinstance(meta, dict) else ""


def _is_video(row: Row) -> bool:
    return any(media["kind"] == "video" for media in row["media"])


def _frames(parts: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    """Each frame with the assistant's text between it and the next, where frames are in its turn."""
    frames: list[tuple[Mapping[str, Any], str]] = []
    for part in parts:
        if part["kind"] == "image":
            frames.append((part, ""))
        elif part["trained"] and frames and frames[-1][0]["role"] == "assistant":
            frame, words = frames[-1]
            frames[-1] = (frame, shortened(f"{words} {part['text']}", 80))
    return frames
