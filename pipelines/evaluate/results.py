"""What a benchmark comes to: its score with an interval, everything that the score depends on, every answer.

Files of a result's folder:

* ``samples.parquet``: one row per question with answer and score, in the benchmark's order. The same
  checkpoint and settings give the same bytes, whatever the number of workers.
* ``result.json``: a :class:`BenchmarkResult`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from casa_core.errors import DataError
from pipelines.evaluate.benchmarks.catalogue import CATALOGUE
from pipelines.evaluate.benchmarks.layout.benchmark import Benchmark
from pipelines.evaluate.benchmarks.published import MASKED, published_beside
from pipelines.evaluate.kept.files import RESULT, SAMPLES
from pipelines.evaluate.metrics.base import FloatArray, Metric, Truth
from pipelines.evaluate.metrics.intervals import Estimate
from pipelines.evaluate.metrics.resampling import bootstrap
from pipelines.evaluate.worker import ROWS
from pipelines.storage.atomic import create, write_whole
from pipelines.storage.json_files import read_json
from pipelines.storage.uri import Folder

TRANSIENT = ("reused",)
"""Columns of a worker's rows that differ between runs with the same answers."""
SAMPLE_SCHEMA = pa.schema(
    [*(one for one in ROWS if one.name not in TRANSIENT), pa.field("score", pa.float64())]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A metric's headline with its 95 % interval.

    Attributes:
        metric, version, rule: Name and version of the metric, and where its rule is written down.
        parts: Further numbers, in the same unit.
    """

    metric: str
    version: str
    rule: str
    unit: str
    value: float
    low: float
    high: float
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """How fast it went; of the questions that were asked now."""

    seconds: float
    asked: int
    tokens: int
    workers: int
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """One model's result on one benchmark.

    Attributes:
        score, beside: By the benchmark's own metric, and by further ones.
        questions: How many count; those without an answer among them, as wrong.
        failed: How many could not be asked or answered, by reason; never left out silently.
        empty, cut: How many answers are empty, and ended by the token limit.
        checkpoint: Where it lies, its fingerprint, and how answers were computed.
        data: Where the tables lie, their revision and digest, and how many questions were asked of how many.
        prompt: The first question's prompt, a hash of all, and where the wording comes from.
        decoding: Sampling settings, mode, longest answer, and what differs from the checkpoint's own: the
            largest side of a picture, masking.
        published: Scores of others with their sources, first those measured in the same way.
        judge: Who judged, by which words, and how often each verdict was given; empty without a judge.
    """

    benchmark: str
    title: str
    score: Score
    beside: list[Score]
    questions: int
    failed: dict[str, int]
    empty: int
    cut: int
    checkpoint: dict[str, Any]
    data: dict[str, Any]
    prompt: dict[str, str]
    decoding: dict[str, Any]
    throughput: Throughput
    published: list[dict[str, Any]]
    code: dict[str, str]
    date: str
    judge: dict[str, Any] = field(default_factory=dict)


def truths_of(rows: Sequence[Mapping[str, Any]]) -> list[Truth]:
    """The truths of samples."""
    return [
        Truth(
            answers=tuple(row["truths"] or ()),
            options=tuple(row["options"] or ()),
            category=row["category"] or "",
            group=row["group"] or "",
        )
        for row in rows
    ]


def scores_of(metric: Metric, rows: Sequence[Mapping[str, Any]], truths: Sequence[Truth]) -> FloatArray:
    """Score of each sample, [n]; of one without an answer, 0."""
    answered = np.array([row["answer"] is not None for row in rows])
    return np.where(answered, metric.scores([row["answer"] or "" for row in rows], truths), 0.0)


def score_by(metric: Metric, scores: FloatArray, truths: Sequence[Truth]) -> Score:
    """The headline of some scores."""
    estimate: Estimate = bootstrap(metric, scores, truths)
    return Score(
        metric=metric.name,
        version=metric.version,
        rule=metric.source,
        unit=metric.unit,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        parts=metric.parts(scores, truths),
    )


def variant_title(max_side: int | None, mask: str | None) -> str:
    """What sets a result apart from the benchmark's usual one, behind its title."""
    return (f" at {max_side}" if max_side else "") + (f", {MASKED[mask]}" if mask else "")


def judged(
    benchmark: Benchmark, rows: Sequence[dict[str, Any]], points: Mapping[int, float] | None = None
) -> tuple[list[dict[str, Any]], list[Score]]:
    """Score the rows of a benchmark.

    Args:
        points: A judge's scores by index, for the benchmark's own metric; rows without one get 0.

    Returns:
        The samples, each with its score, and the headlines: by the benchmark's own metric, then the others.

    Raises:
        DataError: If no row is a question.
    """
    asked = [row for row in rows if row["truths"] is not None]
    if not asked:
        reason = next((row["error"] for row in rows), "There are no rows.")
        raise DataError(
            f"None of the {len(rows)} rows of {benchmark.name} is a question.",
            reason,
            "Take the files that the benchmark names, or correct them.",
        )
    truths = truths_of(asked)
    scores = scores_of(benchmark.metric, asked, truths)
    if points is not None:
        scores = np.array([points.get(row["index"], 0.0) for row in asked])
    boards = [score_by(benchmark.metric, scores, truths)]
    boards += [score_by(one, scores_of(one, asked, truths), truths) for one in benchmark.beside]
    of_row = {row["index"]: float(score) for row, score in zip(asked, scores, strict=True)}
    return [{**row, "score": of_row.get(row["index"])} for row in rows], boards


def result_of(
    benchmark: Benchmark,
    samples: Sequence[Mapping[str, Any]],
    scores: Sequence[Score],
    facts: Mapping[str, Any],
) -> BenchmarkResult:
    """Put a result together.

    Args:
        samples: From :func:`judged`, as ``scores``.
        facts: ``checkpoint``, ``data``, ``decoding``, ``throughput``, ``code`` and ``date``.
    """
    failed: dict[str, int] = {}
    for row in samples:
        if row["error"]:
            failed[row["error"]] = failed.get(row["error"], 0) + 1
    comparable = facts.get("judge", {}).get("comparable", True)
    variant = facts["decoding"].get("max_side"), facts["decoding"].get("mask")
    prompts = [row["prompt"] for row in samples if row["prompt"]]
    text = json.dumps(prompts, ensure_ascii=False)
    return BenchmarkResult(
        benchmark=benchmark.name,
        title=benchmark.title + variant_title(*variant),
        score=scores[0],
        beside=list(scores[1:]),
        questions=sum(row["score"] is not None for row in samples),
        failed=failed,
        empty=sum(row["answer"] is not None and not row["answer"].strip() for row in samples),
        cut=sum(row["finish_reason"] == "length" for row in samples),
        prompt={
            "first": prompts[0] if prompts else "",
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "wording": benchmark.prompt_source,
        },
        published=[asdict(one) for one in published_beside(benchmark.name, *variant) if comparable],
        **facts,
    )


def write_result(folder: Folder, result: BenchmarkResult, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write both files; ``result.json`` last, so that a folder with it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{name: row[name] for name in SAMPLE_SCHEMA.names} for row in samples]
    with create(folder / SAMPLES) as file:
        pq.write_table(pa.Table.from_pylist(rows, SAMPLE_SCHEMA), file)
    write_whole(folder / RESULT, json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n")


def result_folders(folder: Folder) -> list[Folder]:
    """The benchmarks' folders of an evaluation, in the catalogue's order, one's own after them; a benchmark's
    folder is one by itself.

    Raises:
        DataError: If there are none.
    """
    if (folder / RESULT).is_file():
        return [folder]
    found = [path.parent for path in folder.rglob(RESULT) if path.parent.parent == folder]
    if not found:
        raise DataError(
            f"{folder} holds no results.",
            f"Neither it nor a folder in it has a {RESULT}, which is written last.",
            "Name an output of `casa evaluate`, or a benchmark's folder in one.",
        )
    rank = {name: at for at, name in enumerate(CATALOGUE)}
    return sorted(found, key=lambda one: (rank.get(one.name.partition("@")[0], len(rank)), one.name))


def read_result(folder: Folder) -> BenchmarkResult:
    """The result in a folder.

    Raises:
        DataError: If there is none, or it is damaged.
    """
    values = read_json(folder / RESULT, dict)
    if values is None:
        raise DataError(
            f"{folder} holds no result.",
            f"It has no {RESULT} that can be read; it is written last.",
            "Name a benchmark's folder below an output of `casa evaluate`.",
        )
    values["score"] = Score(**values["score"])
    values["beside"] = [Score(**one) for one in values["beside"]]
    values["throughput"] = Throughput(**values["throughput"])
    return BenchmarkResult(**values)
