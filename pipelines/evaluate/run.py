"""The evaluate stage: every model on every held-out split; scores, a table and three files.

Files of the artifact:

* ``results.parquet``: one row per model and question or clip (`RESULT_SCHEMA`).
* ``captions.json``: ``{model: {source: [clip, …]}}``, a clip being ``{sample_id, row, query, frames}`` with
  ``{timestamp, truth, spoken, truncated}`` for each frame.
* ``metrics.json``: ``{source: Scoreboard}``, see `pipelines.evaluate.benchmarks.base`.

Times are left out of the files, so that the same models give the same bytes; they go into the summary.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from casa_core.errors import DataError
from pipelines.dag.context import StageContext
from pipelines.dag.settings import read_settings, stage_settings
from pipelines.data.store.readers import CleanReader
from pipelines.evaluate import HELD_OUT
from pipelines.evaluate.benchmarks import BENCHMARKS
from pipelines.evaluate.benchmarks.base import BLIND, MODEL, BenchmarkSettings, Scoreboard
from pipelines.evaluate.inference import PREDICTION_SCHEMA, Checkpoint, chunks, predict, prediction_from_row
from pipelines.evaluate.metrics.intervals import Estimate
from pipelines.storage.atomic import create, write_whole
from pipelines.storage.uri import Folder

ROLES = {"train": MODEL, "blind": BLIND}
"""Input role of the stage → name of the evaluated model, the model first. Other roles are clean artifacts."""

RESULT_SCHEMA = pa.schema([field for field in PREDICTION_SCHEMA if field.name != "frames"])


@stage_settings
class EvaluateSettings:
    """Settings of the stage.

    Attributes:
        evaluate: The recipe's section.
        sources: Names of the sources to evaluate on; each is an input role.
    """

    evaluate: BenchmarkSettings
    sources: tuple[str, ...]


def run_stage(context: StageContext) -> dict[str, Any]:
    """Evaluate the models of this run; write their predictions and scores.

    Inputs: ``train`` (and ``blind``) with a checkpoint in ``model/``; every other role is a clean artifact.

    Returns:
        The headline numbers, named ``<source>_<measure>``, and the latency of live frames in milliseconds.

    Raises:
        DataError: If no source has a held-out split.
    """
    own = read_settings(EvaluateSettings, context.settings)
    settings = own.evaluate
    checkpoints = {
        n: Checkpoint(context.inputs[role] / "model", context.content_digest(role))
        for role, n in ROLES.items()
        if role in context.inputs
    }
    sources = {source: context.inputs[source] for source in own.sources}
    work = chunks({source: CleanReader(path, HELD_OUT) for source, path in sources.items()}, settings)
    if not work:
        raise DataError(
            "There is nothing to evaluate on.",
            f"None of the sources {sorted(sources)} has a held-out split.",
            "Give at least one source test rows or test clips.",
        )
    total = len(checkpoints) * sum(len(chunk.rows) for chunk in work)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        context.progress(min(done, total), total, "held-out samples evaluated")

    _connect()
    workers = int(context.placement["data"]["workers"])
    rows = predict(checkpoints, sources, work, settings, workers=workers, on_rows=advance)
    boards = score(rows, settings)
    write(context.output, rows, boards)
    for source, board in boards.items():
        print_board(source, board)
    return summary(rows, boards)


def score(rows: Sequence[Mapping[str, Any]], settings: BenchmarkSettings) -> dict[str, Scoreboard]:
    """One score board per source, in the order of the sources' first rows (of `PREDICTION_SCHEMA`)."""
    by_source: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    names = {}
    for row in rows:
        by_source[row["source"]][row["model"]].append(prediction_from_row(row))
        names[row["source"]] = row["benchmark"]
    benchmarks = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    return {source: benchmarks[names[source]].score(by_source[source], settings) for source in by_source}


def summary(rows: Sequence[Mapping[str, Any]], boards: Mapping[str, Scoreboard]) -> dict[str, Any]:
    """Headline numbers as shares of 1, the same in one line, and the latency on live frames (ms)."""
    numbers = {
        f"{source}_{key}": value for source, b in boards.items() for key, value in b.headlines().items()
    }
    latencies = [frame["latency_s"] for row in rows if row["model"] == MODEL for frame in row["frames"]]
    if latencies:
        p50, p95 = np.quantile(latencies, [0.5, 0.95])
        numbers |= {"live_frame_ms_p50": 1000 * float(p50), "live_frame_ms_p95": 1000 * float(p95)}
    line = " · ".join(f"{source} {_one_line(board)}" for source, board in boards.items())
    return {"headline": line, **{name: round(value, 4) for name, value in numbers.items()}}


def _one_line(board: Scoreboard) -> str:
    """Such as ``accuracy 93.1 % (blind 41.0 %, chance 38.2 %)``."""
    model, *others = ((line, f"{100 * line.cells[board.headline].value:.1f} %") for line in board.lines)
    beside = ", ".join(f"{line.name} {value}" for line, value in others)
    return f"{model[0].key} {model[1]} ({beside})"


def write(output: Folder, rows: Sequence[Mapping[str, Any]], boards: Mapping[str, Scoreboard]) -> None:
    """Write the three files; each appears whole or not at all."""
    results = pa.Table.from_pylist(
        [{name: row[name] for name in RESULT_SCHEMA.names} for row in rows], RESULT_SCHEMA
    )
    with create(output / "results.parquet") as file:
        pq.write_table(results, file)
    _write_json(output / "captions.json", captions(rows))
    _write_json(output / "metrics.json", {source: asdict(board) for source, board in boards.items()})


def captions(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every clip frame by frame: model → source → clips in row order."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        if row["frames"]:
            frames = [
                {k: frame[k] for k in ("timestamp", "truth", "spoken", "truncated")}
                for frame in row["frames"]
            ]
            clip = {
                "sample_id": row["sample_id"],
                "row": row["row"],
                "query": row["question"],
                "frames": frames,
            }
            found.setdefault(row["model"], {}).setdefault(row["source"], []).append(clip)
    return found


def print_board(source: str, board: Scoreboard) -> None:
    """Print models and baselines against columns, with 95 % intervals."""
    table = Table(
        title=f"{board.title} ({source}): {board.measure}", title_justify="left", title_style="bold"
    )
    table.add_column("")
    for column in board.columns:
        table.add_column(column, justify="right", style="bold" if column == board.headline else "")
    for line in board.lines:
        table.add_row(line.name, *(_percent(line.cells.get(column)) for column in board.columns))
    console = Console(width=110)
    console.print(table)
    for note in board.notes:
        console.print(f"  {note}", style="dim")


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    value = f"{100 * estimate.value:.1f} %"
    if estimate.low == estimate.high:
        return value
    return f"{value} [{100 * estimate.low:.1f} to {100 * estimate.high:.1f}]"


def _write_json(path: Folder, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _connect() -> None:
    """Join the Ray cluster the stage's job runs on (its address is in the job's environment)."""
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=True)
