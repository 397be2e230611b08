"""easy-vqa (5,000 real 64-pixel pictures, 48,000 questions) written in FineVision's parquet layout.

The raw questions are three quarters yes/no. Each split is drawn so that colour, shape and yes/no questions
are equally frequent, and "yes" as frequent as "no": a metric over all rows weighs the three kinds equally.
Training yes/no questions are half about colours and half about shapes; the package asks three times as often
about colours, which are learned in a hundred steps. Held-out ones stay as the package asks them.
One row holds one question; the ``source`` column names its kind: ``easy-vqa/color``, ``/shape``, ``/yes_no``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from casa_core.errors import ConfigError

Split = Literal["train", "test"]
RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")
ROWS_PER_FILE = 4096
ROWS_PER_GROUP = 1024

FINEVISION_SCHEMA = pa.schema(
    [
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("texts", pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))),
        ("source", pa.string()),
        *[(f"{name}_ratings", pa.list_(pa.int64())) for name in RATINGS],
        *[(f"{name}_min", pa.int64()) for name in RATINGS],
    ]
)

_SHAPES = frozenset({"circle", "rectangle", "triangle"})


@dataclass(frozen=True, slots=True)
class Question:
    """One question of the package: ``kind`` is ``color``, ``shape``, ``yes`` or ``no``."""

    text: str
    answer: str
    image_id: int

    @property
    def kind(self) -> str:
        if self.answer in ("yes", "no"):
            return self.answer
        return "shape" if self.answer in _SHAPES else "color"

    @property
    def about_shape(self) -> bool:
        """Whether a yes/no question names a shape."""
        return any(shape in self.text for shape in _SHAPES)


def write_easy_vqa(
    output: Path,
    *,
    seed: int,
    train_rows: int,
    test_rows: int,
    faults: bool = True,
    progress: Callable[[float, float, str], None] = lambda done, total, message: None,
) -> dict[str, list[str]]:
    """Writes ``vqa/{train,test}-NNNNN-of-NNNNN.parquet`` under ``output``.

    Args:
        seed: Decides which questions are drawn, and their order.
        train_rows: Rows from the package's training pictures; a multiple of 12.
        test_rows: Rows from its held-out pictures; a multiple of 12.
        faults: Adds to the training rows one truncated picture and one record whose picture is missing.
        progress: Called as ``(done, total, message)``.

    Returns:
        The files of each split, relative to ``output``.

    Raises:
        ConfigError: Where the package has fewer questions of a kind than were asked for.
    """
    files: dict[str, list[str]] = {}
    total = train_rows + test_rows
    done = 0
    counts: dict[Split, int] = {"train": train_rows, "test": test_rows}
    for split, count in counts.items():
        rows = list(_rows(split, count, seed))
        if faults and split == "train":
            _add_faults(rows)
        files[split] = write_finevision(output, "vqa", split, rows)
        done += count
        progress(done, total, f"easy-vqa {split}")
    return files


def _rows(split: Split, count: int, seed: int) -> Iterator[dict[str, Any]]:
    questions, image_paths = _load(split)
    rng = random.Random(f"easy-vqa/{split}/{seed}")
    for question in _draw_balanced(questions, count, rng, topics=split == "train"):
        kind = "yes_no" if question.kind in ("yes", "no") else question.kind
        data = image_paths[question.image_id].read_bytes()
        yield {
            "images": [{"bytes": data, "path": f"{split}/{question.image_id}.png"}],
            "texts": [{"user": question.text, "assistant": question.answer}],
            "source": f"easy-vqa/{kind}",
            **draw_ratings(rng),
        }


def _draw_balanced(
    questions: list[Question], count: int, rng: random.Random, *, topics: bool
) -> list[Question]:
    """``count`` distinct questions: a third colour, a third shape, a sixth "yes", a sixth "no", shuffled.

    Args:
        topics: Halve "yes" and "no" further, between questions about shapes and about colours.
    """
    if count % 12:
        raise ConfigError(
            f"The generator easy_vqa cannot draw {count} rows.",
            "Rows are shared equally between colour, shape and yes/no questions, yes as often as no, "
            "and these between both topics.",
            f"Ask for a multiple of 12, for example {round(count / 12) * 12 or 12}.",
        )
    pools: dict[tuple[str, bool], list[Question]] = {}
    for question in questions:
        halved = topics and question.kind in ("yes", "no")
        pools.setdefault((question.kind, halved and question.about_shape), []).append(question)
    drawn: list[Question] = []
    for (kind, _), pool in sorted(pools.items()):
        share = 3 if kind in ("color", "shape") else 12 if topics else 6
        if len(pool) < count // share:
            raise ConfigError(
                f"The package easy_vqa has {len(pool)} questions with a {kind} answer, not {count // share}.",
                "Every row is a different question.",
                f"Ask for at most {len(pool) * share // 12 * 12} rows.",
            )
        drawn += rng.sample(pool, count // share)
    rng.shuffle(drawn)
    return drawn


def _load(split: Split) -> tuple[list[Question], dict[int, Path]]:
    try:
        import easy_vqa  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise ConfigError(
            "The generator easy_vqa needs the package easy-vqa.",
            f"{error}.",
            "Run `pip install 'casa[demo]'`.",
        ) from error
    root = Path(easy_vqa.__file__).parent / "data" / split
    questions = [Question(*entry) for entry in json.loads((root / "questions.json").read_text())]
    return questions, {
        question.image_id: root / "images" / f"{question.image_id}.png" for question in questions
    }


def draw_ratings(rng: random.Random) -> dict[str, Any]:
    """The four rating lists (one entry per turn) and their minima; now and then null, as in FineVision."""
    columns: dict[str, Any] = {}
    for name in RATINGS:
        rating = None if rng.random() < 0.05 else rng.choice((4, 5))
        columns[f"{name}_ratings"] = None if rating is None else [rating]
        columns[f"{name}_min"] = rating
    return columns


def _add_faults(rows: list[dict[str, Any]]) -> None:
    """Inserts a truncated picture and a record without its picture: copies, so that no good row is lost."""
    good = rows[len(rows) // 3]
    data = good["images"][0]["bytes"]
    truncated = {**good, "images": [{"bytes": data[: len(data) // 2], "path": "train/truncated.png"}]}
    missing = {**rows[len(rows) // 2], "images": [{"bytes": None, "path": "train/missing.png"}]}
    rows.insert(len(rows) // 3, truncated)
    rows.insert(2 * len(rows) // 3, missing)


def write_finevision(output: Path, subset: str, split: str, rows: list[dict[str, Any]]) -> list[str]:
    """Writes rows of `FINEVISION_SCHEMA`: ``<subset>/<split>-NNNNN-of-NNNNN.parquet``; returns the names."""
    starts = range(0, max(len(rows), 1), ROWS_PER_FILE)
    names = [f"{subset}/{split}-{number:05d}-of-{len(starts):05d}.parquet" for number in range(len(starts))]
    for name, start in zip(names, starts, strict=True):
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(rows[start : start + ROWS_PER_FILE], schema=FINEVISION_SCHEMA)
        pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, compression="zstd")
    return names
