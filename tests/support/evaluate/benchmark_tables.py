"""A small parquet table of every benchmark in its documented layout, and videos that need no decoding."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage

from casa_core.media.video import frame_times
from casa_core.types import Image
from pipelines.evaluate.metrics.mme import COGNITION, PERCEPTION
from pipelines.evaluate.metrics.ocrbench import CATEGORIES
from tests.support.evaluate.stream_tables import STREAM_ROWS, STREAM_SCHEMAS

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXTS = pa.list_(pa.string())


def png(number: int = 0) -> bytes:
    """A small picture, a different one for each number."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    PILImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture(number: int = 0) -> dict[str, Any]:
    """A picture as the hub's Image feature stores it."""
    return {"bytes": png(number), "path": f"{number}.png"}


def text_fields(*names: str) -> list[pa.Field]:
    return [pa.field(name, pa.string()) for name in names]


IMAGE = pa.field("image", PICTURE)
SCHEMAS = {
    "chartqa": pa.schema([*text_fields("type", "question", "answer"), IMAGE]),
    "docvqa": pa.schema(
        [
            *text_fields("questionId", "question"),
            pa.field("question_types", TEXTS),
            IMAGE,
            pa.field("docId", pa.int64()),
            pa.field("answers", TEXTS),
            *text_fields("data_split"),
        ]
    ),
    "infovqa": pa.schema(
        [
            *text_fields("questionId", "question"),
            pa.field("answers", TEXTS),
            pa.field("answer_type", TEXTS),
            IMAGE,
        ]
    ),
    "ocrbench": pa.schema(
        [*text_fields("dataset", "question", "question_type"), pa.field("answer", TEXTS), IMAGE]
    ),
    "textvqa": pa.schema(
        [
            *text_fields("image_id"),
            pa.field("question_id", pa.int32()),
            *text_fields("question"),
            IMAGE,
            pa.field("answers", TEXTS),
        ]
    ),
    "realworldqa": pa.schema([IMAGE, *text_fields("question", "answer")]),
    "ai2d": pa.schema([*text_fields("question"), pa.field("options", TEXTS), *text_fields("answer"), IMAGE]),
    "gqa": pa.schema(text_fields("id", "imageId", "question", "answer", "fullAnswer")),
    "mme": pa.schema([*text_fields("question_id"), IMAGE, *text_fields("question", "answer", "category")]),
    "videomme": pa.schema(
        [
            *text_fields("videoID", "question_id", "duration", "domain", "task_type", "question"),
            pa.field("options", TEXTS),
            *text_fields("answer"),
        ]
    ),
    "nextqa": pa.schema(
        [
            pa.field("video", pa.int64()),
            *text_fields("question"),
            pa.field("answer", pa.int64()),
            pa.field("qid", pa.int64()),
            *text_fields("type", "a0", "a1", "a2", "a3", "a4"),
        ]
    ),
    "perceptiontest": pa.schema(
        [
            *text_fields("video_name", "question", "question_id"),
            pa.field("options", TEXTS),
            *text_fields("answer_id", "area", "reasoning"),
            pa.field("tag", TEXTS),
        ]
    ),
    "mvbench": pa.schema(
        [*text_fields("video", "question"), pa.field("candidates", TEXTS), *text_fields("answer")]
    ),
    "mlvu": pa.schema(
        [
            *text_fields("video_name", "question"),
            pa.field("candidates", TEXTS),
            *text_fields("answer", "task_type"),
        ]
    ),
}
SCHEMAS["videomme_subtitles"] = SCHEMAS["videomme"]
SCHEMAS |= STREAM_SCHEMAS


def rows(name: str) -> list[dict[str, Any]]:
    """Rows of a benchmark; what the layouts have in common is filled in."""
    found = ROWS[name.removesuffix("_subtitles")]
    has_picture = "image" in SCHEMAS[name].names
    return [({"image": picture(number)} if has_picture else {}) | row for number, row in enumerate(found)]


ROWS: dict[str, list[dict[str, Any]]] = {
    "chartqa": [
        {"type": "human_test", "question": "How many bars?", "answer": "14"},
        {"type": "augmented_test", "question": "Which year is the highest?", "answer": "2015"},
        {"type": "augmented_test", "question": "Is it growing?", "answer": "Yes"},
    ],
    "docvqa": [
        {"questionId": "49153", "question": "What is the name?", "docId": 1, "answers": ["U.S.", "USA"]},
        {
            "questionId": "24580",
            "question": "What is the \u2018actual\u2019 value per 1000?",
            "docId": 1,
            "answers": ["0.28"],
        },
        {
            "questionId": "57349",
            "question": "To whom is it sent?",
            "docId": 7,
            "answers": ["Paul", "paul b."],
        },
    ],
    "infovqa": [
        {"questionId": "65718", "question": "Which platform is used most?", "answers": ["Pinterest"]},
        {"questionId": "65719", "question": "What share?", "answers": ["26%", "26 %"]},
    ],
    "ocrbench": [
        {
            "dataset": "HME100k" if "Handwritten M" in kind else "IC13",
            "question_type": kind,
            "question": "what is written in the image?",
            "answer": ["X ^ 2" if "Handwritten M" in kind else "CENTRE"],
        }
        for kind in CATEGORIES
    ],
    "textvqa": [
        {
            "image_id": "003a8ae2ef43b901",
            "question_id": 34602,
            "question": "what brand is it?",
            "answers": ["nokia"] * 4 + ["Nokia."] * 5 + ["toshiba"],
        },
        {
            "image_id": "003a8ae2ef43b901",
            "question_id": 34603,
            "question": "what number?",
            "answers": ["5"] * 9 + [""],
        },
    ],
    "realworldqa": [
        {
            "question": "Where is the dog?\nA. On the left\nB. On the right\nC. Behind the car\n"
            "Please answer directly with only the letter of the correct option and nothing else.",
            "answer": "B",
        },
        {"question": "How many cars are there?", "answer": "3"},
    ],
    "ai2d": [
        {"question": "What does A show", "options": ["larva", "egg", "pupa", "adult"], "answer": "2"},
        {"question": "Which one is it?", "options": ["a", "b", "c", "d"], "answer": "0"},
        {"question": "Name the part labelled T.", "options": ["root", "leaf", "stem", "seed"], "answer": "3"},
    ],
    "gqa": [
        {
            "id": "202218649",
            "imageId": "n161313",
            "question": "Is it overcast?",
            "answer": "no",
            "fullAnswer": "No.",
        },
        {
            "id": "202218650",
            "imageId": "n161313",
            "question": "What is it?",
            "answer": "car",
            "fullAnswer": "A car.",
        },
        {
            "id": "202218651",
            "imageId": "n235859",
            "question": "Who sits?",
            "answer": "man",
            "fullAnswer": "A man.",
        },
    ],
    "mme": [
        {
            "question_id": f"{category}/{n}.png",
            "question": f"Is it {n}? Please answer yes or no.",
            "answer": answer,
            "category": category,
        }
        for category in (*PERCEPTION, *COGNITION)
        for n in range(2)
        for answer in ("Yes", "No")
    ],
    "videomme": [
        {
            "videoID": "fFjv93ACGo8",
            "question_id": f"001-{n}",
            "duration": "short",
            "domain": "Knowledge",
            "task_type": "OCR Problems",
            "question": "What appears first?",
            "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. The three kinds come together."],
            "answer": right,
        }
        for n, right in enumerate("CAB", 1)
    ],
    "nextqa": [
        {
            "video": 4010069381,
            "question": "how do the two man play ",
            "answer": n,
            "qid": n,
            "type": "CH",
            "a0": "roll it",
            "a1": "tap their feet",
            "a2": "strum the string",
            "a3": "hit with sticks",
            "a4": "pat",
        }
        for n in range(5)
    ],
    "perceptiontest": [
        {
            "video_name": "video_8241",
            "question": "Is the camera moving?",
            "question_id": "0",
            "area": "physics",
            "options": ["Yes", "No", "I don't know"],
            "answer_id": right,
            "reasoning": "descriptive",
            "tag": ["motion"],
        }
        for right in "012"
    ],
    "mvbench": [
        {
            "video": "166583.webm",
            "question": "What is the action performed?",
            "candidates": ["Not sure", "Scattering", "Piling"],
            "answer": right,
        }
        for right in ("Piling", "Scattering")
    ],
    "mlvu": [
        {
            "video_name": f"{task}/{n}.mp4",
            "question": "What colour is it?\n(A) red\n(B) green\n(C) blue",
            "candidates": ["red", "green", "blue"],
            "answer": right,
            "task_type": task,
        }
        for task in ("plotQA", "order")
        for n, right in enumerate(("B", "blue", "A"))
    ],
}
ROWS |= STREAM_ROWS

GQA_IMAGES = pa.table({"id": ["n235859", "n161313"], "image": pa.array([picture(1), picture(2)], PICTURE)})


def table(name: str, content: Sequence[dict[str, Any]] | None = None) -> pa.Table:
    """The table of a benchmark, through a parquet file."""
    buffer = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(list(rows(name) if content is None else content), SCHEMAS[name]), buffer
    )
    return pq.read_table(buffer)


@dataclass
class FakeVideos:
    """Frames that name their video instead of holding it; ``texts`` are the subtitle files there are."""

    texts: dict[str, str] = field(default_factory=dict)
    seconds: int = 30

    def frames(self, name: str, start: float = 0.0, until: float | None = None) -> tuple[Image, ...]:
        until = self.seconds if until is None else until
        times = frame_times(start, until, 2.0)
        return tuple(Image(data=name.encode(), timestamp=time) for time in times)

    def live(self, name: str, start: float, until: float) -> tuple[Image, ...]:
        return tuple(replace(frame, role="assistant") for frame in self.frames(name, start, until))

    def pictures(self, folder: str, fps: float) -> tuple[Image, ...]:
        return tuple(Image(data=f"{folder}/{n}".encode(), media=n) for n in range(round(fps)))

    def text(self, name: str) -> str | None:
        return self.texts.get(name)


def write_parquet(path: Path, content: pa.Table) -> Path:
    """A table as a file; returns its path."""
    pq.write_table(content, path)
    return path
