"""easy-vqa (5,000 real 64-pixel pictures, 48,000 questions) written in FineVision's parquet layout.

The raw questions are three quarters yes/no, and six of seven of these can be answered without the picture:
"is there a red shape?" by no, "is there no red shape?" by yes. So each is drawn as often with the one answer
as with the other.

A training row is a picture with five questions in one conversation, in any order: which colour it has, which
shape, and three times whether it shows something, yes as often as no. They are in the package's wordings
about the package's pictures, but not all of them in its list, which asks too few that are to be answered by
what a picture shows. One of eight yes/no questions is negated ("is there not a circle?"), which is learned
once the plain ones are; half of all are put in other words. Held-out rows are questions of the package's
list, one each: a quarter about the colour, about the shape, of yes/no, and some of these in other words. The
``source`` column names their kind, ``easy-vqa/color``, ``/shape``, ``/yes_no`` or ``/reworded``; it is
``easy-vqa/mixed`` for training.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from casa_core.errors import ConfigError
from pipelines.data.generate.shapes import COLORS, SHAPES

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

TOPICS = ("color", "shape")
NAMES = frozenset({*COLORS, *SHAPES})


@dataclass(frozen=True, slots=True)
class Question:
    """One question of the package: ``kind`` is ``color``, ``shape`` or ``yes_no``."""

    text: str
    answer: str
    image_id: int

    @property
    def kind(self) -> str:
        if self.answer in ("yes", "no"):
            return "yes_no"
        return "shape" if self.answer in SHAPES else "color"

    @property
    def topic(self) -> str:
        """What a yes/no question names: a ``color`` or a ``shape``."""
        return "shape" if words_of(self.text) & {*SHAPES} else "color"

    @property
    def negated(self) -> bool:
        """Whether a yes/no question asks for what is not there."""
        return " no " in self.text or " not " in self.text

    def reworded(self, rng: random.Random) -> Question:
        """The same question as other people would type it."""
        ways: list[Callable[[str], str]] = [
            lambda text: text.removesuffix("?"),
            str.capitalize,
            *(str.upper, str.upper),  # twice as often, as it changes every token
            lambda text: text.replace("color", "colour"),
        ]
        text = self.text
        for way in rng.sample(ways if "color" in text else ways[:-1], rng.choice((1, 2))):
            text = way(text)
        return replace(self, text=text)


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
        train_rows: Rows from the package's training pictures.
        test_rows: Rows from its held-out pictures; a multiple of 24, as the recipe demands.
        faults: Adds to the training rows one truncated picture and one record whose picture is missing.
        progress: Called as ``(done, total, message)``.

    Returns:
        The files of each split, relative to ``output``.

    Raises:
        ConfigError: Without the package.
        ValueError: Where it has fewer held-out questions than were asked for.
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
    for kind, asked in (_training if split == "train" else _held_out)(questions, count, rng):
        image_id = asked[0].image_id
        data = image_paths[image_id].read_bytes()
        yield {
            "images": [{"bytes": data, "path": f"{split}/{image_id}.png"}],
            "texts": [{"user": question.text, "assistant": question.answer} for question in asked],
            "source": f"easy-vqa/{kind}",
            **draw_ratings(rng, len(asked)),
        }


Look = tuple[str, str]
"""A picture's colour and shape."""
Conversation = tuple[str, list[Question]]
"""The kind of a row, and its questions, all about one picture."""


def _training(questions: list[Question], count: int, rng: random.Random) -> list[Conversation]:
    """``count`` pictures with five questions each, in the package's wordings."""
    pictures = sorted(_by_look(questions).items())
    openly = [sorted({q.text for q in questions if q.kind == topic}) for topic in TOPICS]
    yes_no = sorted({(q.negated, q.text) for q in questions if q.kind == "yes_no"})
    drawn: list[Conversation] = []
    for _ in range(count):
        look, images = rng.choice(pictures)
        image_id = rng.choice(images)
        row = [_yes_or_no(yes_no, look, image_id, rng) for _ in range(3)]
        for texts, answer in zip(openly, look, strict=True):
            fitting = [text for text in texts if words_of(text) & NAMES <= {*look}]
            row.append(Question(rng.choice(fitting), answer, image_id))
        rng.shuffle(row)
        drawn.append(("mixed", [q.reworded(rng) if rng.random() < 0.5 else q for q in row]))
    return drawn


def _yes_or_no(wordings: list[tuple[bool, str]], look: Look, image_id: int, rng: random.Random) -> Question:
    """Whether a picture shows a colour or a shape: as often what it shows as anything else of its kind."""
    negated, shown, topic = rng.random() < 1 / 8, rng.random() < 1 / 2, rng.randrange(2)
    others = [name for name in (COLORS, SHAPES)[topic] if name != look[topic]]
    name = look[topic] if shown else rng.choice(others)
    fitting = [text for negates, text in wordings if negates == negated and name in words_of(text)]
    return Question(rng.choice(fitting), "yes" if shown != negated else "no", image_id)


def words_of(text: str) -> set[str]:
    """The words of a question as the package asks it."""
    return set(text.removesuffix("?").split())


def _by_look(questions: list[Question]) -> dict[Look, list[int]]:
    """Look → pictures whose questions say both."""
    found: dict[int, dict[str, str]] = {}
    for question in questions:
        own = found.setdefault(question.image_id, {})
        if question.kind != "yes_no":
            own[question.kind] = question.answer
        elif (question.answer == "yes") != question.negated:
            (own[question.topic],) = words_of(question.text) & NAMES
    pictures: dict[Look, list[int]] = {}
    for image_id, own in found.items():
        if len(own) == 2:
            pictures.setdefault((own["color"], own["shape"]), []).append(image_id)
    return pictures


def _held_out(questions: list[Question], count: int, rng: random.Random) -> list[Conversation]:
    """``count`` questions: a quarter of each kind as the package asks them, and a third of these reworded."""
    kinds = [
        rng.sample([q for q in questions if q.kind == "color"], count // 4),
        rng.sample([q for q in questions if q.kind == "shape"], count // 4),
        _pairs([q for q in questions if q.kind == "yes_no"], count // 4, rng),
    ]
    drawn = [(question.kind, [question]) for kind in kinds for question in kind]
    drawn += [("reworded", [q.reworded(rng)]) for kind in kinds for q in kind[: count // 12]]
    rng.shuffle(drawn)
    return drawn


def _pairs(pool: list[Question], count: int, rng: random.Random) -> list[Question]:
    """``count`` yes/no questions: each text as often with one answer as with the other."""
    answers: dict[str, dict[str, list[Question]]] = {}
    for question in rng.sample(pool, len(pool)):
        answers.setdefault(question.text, {"yes": [], "no": []})[question.answer].append(question)
    pairs = {text: list(zip(each["yes"], each["no"], strict=False)) for text, each in answers.items()}
    if count > 2 * sum(map(len, pairs.values())):
        raise ValueError(f"There are fewer than {count} yes/no questions with both answers.")
    drawn: list[Question] = []
    while len(drawn) < count:
        for text in rng.sample(sorted(pairs), len(pairs)):
            if pairs[text] and len(drawn) < count:
                drawn += pairs[text].pop()
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


def draw_ratings(rng: random.Random, turns: int = 1) -> dict[str, Any]:
    """The four rating lists (one entry per turn) and their minima; now and then null, as in FineVision."""
    columns: dict[str, Any] = {}
    for name in RATINGS:
        rating = None if rng.random() < 0.05 else rng.choice((4, 5))
        columns[f"{name}_ratings"] = None if rating is None else [rating] * turns
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
