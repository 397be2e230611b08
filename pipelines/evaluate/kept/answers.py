"""Answers that were computed before: a new scorer, or a run that goes on, costs no inference.

An answer is known by everything it depends on: checkpoint, template and engine (the model's fingerprint), the
conversation with the hashes of its pictures, and how tokens are chosen. How it is scored is not part of that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from casa_core.engine.requests import GenerationResult, SamplingParams
from casa_core.types import Image, Sample
from pipelines.storage.atomic import create
from pipelines.storage.uri import Folder

CAPTIONS = pa.list_(
    pa.struct([("timestamp", pa.float64()), ("text", pa.string()), ("truncated", pa.bool_())])
)
"""What was said after each frame of a live stream; empty for an answer to a question."""
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("image_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("captions", CAPTIONS),
    ]
)
PARTS = "*.parquet"
log = logging.getLogger(__name__)
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """What was said after a frame of a live stream; ``truncated`` where the limit on tokens ended it."""

    timestamp: float
    text: str
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer and its token counts, as of :class:`casa_core.engine.requests.GenerationResult`.

    Attributes:
        captions: Those of a live stream, whose words are joined in ``text``.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    captions: tuple[Caption, ...] = ()

    @classmethod
    def of(cls, result: GenerationResult) -> Answer:
        """What is kept of an engine's result."""
        return cls(
            text=result.text,
            finish_reason=result.finish_reason,
            prompt_tokens=result.prompt_tokens,
            image_tokens=result.image_tokens,
            completion_tokens=result.completion_tokens,
        )


def model_fingerprint(checkpoint: Path, **engine: Any) -> str:
    """Identity of a model's answers: the bytes of a checkpoint's files, and how the engine computes.

    Args:
        checkpoint: An exported checkpoint; its template and processor are among its files.
        engine: Whatever else changes tokens: type, size of pictures, masking, version of the code.
    """
    files = sorted({path for pattern in CHECKPOINT_FILES for path in checkpoint.glob(pattern)})
    digest = hashlib.sha256(json.dumps(engine, sort_keys=True).encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(f"\0{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


def answer_key(model: str, sample: Sample, sampling: SamplingParams, mode: str = "offline") -> str:
    """Identity of an answer.

    Args:
        model: From :func:`model_fingerprint`.
        sample: The conversation with its pictures' bytes; its names do not count.
        mode: How the pictures reach the model: all at once, or as a live stream.
    """
    hashes: dict[int, str] = {}  # one video serves many parts

    def described(part: Any) -> dict[str, Any]:
        if not isinstance(part, Image):
            return {"role": part.role, "text": part.text}
        if part.data is not None and id(part.data) not in hashes:
            hashes[id(part.data)] = hashlib.sha256(part.data).hexdigest()
        picture = None if part.data is None else hashes[id(part.data)]
        return {"role": part.role, "picture": picture, "timestamp": part.timestamp}

    content = {
        "model": model,
        "mode": mode,
        "parts": [described(part) for part in sample.parts],
        "sampling": asdict(sampling),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class AnswerStore:
    """The answers of one model in a folder: parquet files that appear whole, any number of them, from any
    number of runs. The same answer may be in several.

    Args:
        folder: Its own, of all models; local or remote.
        model: From :func:`model_fingerprint`.
    """

    def __init__(self, folder: Folder, model: str) -> None:
        self._folder = folder / model[:32]
        self._added: list[Folder] = []

    def read(self) -> dict[str, Answer]:
        """All of them, by key."""
        found: dict[str, Answer] = {}
        for path in sorted(self._folder.glob(PARTS)):
            found |= _read(path)
        return found

    def add(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """Keep some as a file of their own; empty ones are not kept, so that they are asked for again."""
        rows = [{"key": key, **asdict(answer)} for key, answer in answers if answer.text.strip()]
        if rows:
            self._added.append(self._write(rows))

    def merge(self) -> None:
        """Put what was added into one file, and remove the others: a long run leaves no thousand files."""
        if len(self._added) > 1:
            rows = [{"key": key, **asdict(one)} for path in self._added for key, one in _read(path).items()]
            merged = self._write(rows)
            for path in self._added:  # a reader in between sees the same answers twice
                path.unlink(missing_ok=True)
            self._added = [merged]

    def _write(self, rows: list[dict[str, Any]]) -> Folder:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{uuid.uuid4().hex}.parquet"
        with create(path) as file:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), file)
        return path


def _read(path: Folder) -> dict[str, Answer]:
    """A file's answers; none if another run has just merged it, or a loss of power has damaged it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        log.warning("%s is damaged and counts as absent: %s", path, error)
        return {}
    return {row["key"]: answer_of_row(row, text=row["text"]) for row in rows}


def answer_of_row(row: Mapping[str, Any], *, text: str) -> Answer:
    """The answer of a row that has its fields, the text apart, which rows name differently."""
    plain = ("finish_reason", "prompt_tokens", "image_tokens", "completion_tokens")
    captions = tuple(Caption(**one) for one in row.get("captions") or ())
    return Answer(text=text, captions=captions, **{name: row[name] for name in plain})
