"""What the live page offers of the held-out data: videos to play, and pictures with their questions."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from PIL import Image as Picture

from infra.subtitles import cues
from pipelines.data.store.readers import CleanReader
from pipelines.data.store.rows import Row
from pipelines.storage.atomic import write_whole
from pipelines.storage.uri import Folder

CLIPS = 4
PICTURES = 4
TITLE_CHARACTERS = 60
QUESTION_CHARACTERS = 120
"""Longer questions are none to suggest."""
SHOWN = (".png", ".jpeg", ".webp", ".gif")
"""Formats that browsers show."""
ROWS_LOOKED_AT = 2000
"""Rows of each artifact: a page's samples are not worth reading a large split to its end."""


def copy_demo(clean_artifacts: list[Folder], folder: Folder) -> None:
    """Write held-out videos as mp4 files, and pictures that a question is asked about.

    ``clips.json`` has each video's title and query, ``pictures.json`` each picture's question. Questions
    differ from one another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clips: dict[str, dict[str, str]] = {}
    pictures: dict[str, dict[str, str]] = {}
    for rows, number, row in _rows(clean_artifacts):
        kind = row["media"][0]["kind"]
        question = _asked(row)
        if kind == "video" and len(clips) < CLIPS:
            name = f"clip-{len(clips) + 1}.mp4"
            clips[name] = {"title": title_of(row) or f"Clip {len(clips) + 1}", "query": question}
        elif kind == "image" and len(pictures) < PICTURES and _can_suggest(row, question, pictures):
            with Picture.open(io.BytesIO(rows.media(number, 0))) as picture:
                name = f"picture-{len(pictures) + 1}.{str(picture.format).lower()}"
            if not name.endswith(SHOWN):
                continue
            pictures[name] = {"question": question}
        else:
            continue
        (folder / name).write_bytes(rows.media(number, 0))
        if len(clips) == CLIPS and len(pictures) == PICTURES:
            break
    for index, name in ((clips, "clips.json"), (pictures, "pictures.json")):
        write_whole(folder / name, json.dumps(index, indent=2, ensure_ascii=False))


def title_of(row: Row) -> str:
    """The phrases said in a video, or the first question about it; "" where there is neither."""
    spoken: list[tuple[float, str]] = []
    time: float | None = None
    for part in row["parts"]:
        if part["kind"] == "image":
            time = part["timestamp"]
        elif part["role"] == "assistant" and part["text"].strip() and time is not None:
            spoken.append((time, part["text"]))
    live = len({time for time, _ in spoken}) > 1  # an answer about a whole video comes after its last frame
    phrases = [text for _, _, text in cues(spoken)] if live else [_asked(row)]
    return _shortened(" · ".join(phrases))


def _rows(clean_artifacts: list[Folder]) -> Iterator[tuple[CleanReader, int, dict[str, Any]]]:
    """The held-out rows that have media, without their bytes."""
    for artifact in clean_artifacts:
        rows = CleanReader(artifact, "test")
        for number in range(min(len(rows), ROWS_LOOKED_AT)):
            row = rows.without_bytes(number)
            if row["media"]:
                yield rows, number, row


def _asked(row: Row) -> str:
    asked = (part["text"] for part in row["parts"] if part["kind"] == "text" and part["role"] == "user")
    return next(asked, "")


def _can_suggest(row: Row, question: str, taken: dict[str, dict[str, str]]) -> bool:
    known = {entry["question"] for entry in taken.values()}
    return len(row["media"]) == 1 and 0 < len(question) <= QUESTION_CHARACTERS and question not in known


def _shortened(text: str) -> str:
    """At most so many characters of a text, cut between words."""
    text = " ".join(text.split())
    if len(text) <= TITLE_CHARACTERS:
        return text[:1].upper() + text[1:]
    kept = text[:TITLE_CHARACTERS].rsplit(" ", 1)[0].rstrip(" ·,;:")
    return f"{kept[:1].upper()}{kept[1:]}…"
