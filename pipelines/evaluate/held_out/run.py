"""The evaluate stage: every model on every held-out split; scores, a table and three files.

Files of the artifact:

* ``results.parquet``: one row per model and question or clip (`RESULT_SCHEMA`).
* ``captions.json``: ``{model: {source: [clip, …]}}``, a clip being ``{sample_id, row, query, frames}`` with
  ``{timestamp, truth, spoken, truncated}`` for each frame.
* ``metrics.json``: ``{source: Scoreboard}``, see `pipelines.evaluate.held_out.board`.

The same models give the same bytes. Answers are kept in the store as they come, as those of ``casa evaluate``
are: a stage that was ended goes on where it was.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from casa_core.errors import DataError
from pipelines.dag.checkpoints import local_checkpoint
from pipelines.dag.context import StageContext
from pipelines.dag.settings import read_settings, stage_settings
from pipelines.evaluate.evaluation import Options, model_of
from pipelines.evaluate.held_out.board import BLIND, MODEL, BenchmarkSettings, Prediction, Scoreboard
from pipelines.evaluate.held_out.questions import HeldOut
from pipelines.evaluate.held_out.scoring import (
    Predictions,
    boards_of,
    headlines_of,
    predictions_of,
    rounded,
)
from pipelines.evaluate.kept.answers import AnswerStore
from pipelines.evaluate.metrics.intervals import Estimate
from pipelines.evaluate.model_engine import Model
from pipelines.evaluate.runner import Row, answer_all
from pipelines.storage.atomic import create, write_whole
from pipelines.storage.uri import Folder, open_folder

ROLES = {"train": MODEL, "blind": BLIND}
"""Input role of the stage → name of the evaluated model, the model first. Other roles are clean artifacts."""

RESULT_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("source", pa.string()),
        ("benchmark", pa.string()),
        ("row", pa.int64()),
        ("turn", pa.int32()),
        ("sample_id", pa.string()),
        ("question_type", pa.string()),
        ("question", pa.string()),
        ("truth", pa.string()),
        ("answer", pa.string()),
        ("correct", pa.bool_()),  # null for a clip
    ]
)


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
        The headline numbers, named ``<source>_<measure>``.

    Raises:
        DataError: If no source has a held-out split, or a question could not be answered.
    """
    own = read_settings(EvaluateSettings, context.settings)
    settings = own.evaluate
    found = {source: HeldOut.of(context.inputs[source], settings) for source in own.sources}
    sources = {source: held_out for source, held_out in found.items() if len(held_out)}
    if not sources:
        raise DataError(
            "There is nothing to evaluate on.",
            f"None of the sources {sorted(found)} has a held-out split.",
            "Give at least one source test rows or test clips.",
        )
    folders = {name: context.inputs[role] / "model" for role, name in ROLES.items() if role in context.inputs}
    rows = _answer(folders, sources, context, settings)
    predictions = predictions_of(sources, rows)
    boards = boards_of(sources, predictions, settings)
    write(context.output, predictions, boards)
    for source, board in boards.items():
        print_board(source, board)
    return summary(boards)


def _answer(
    folders: Mapping[str, Folder],
    sources: Mapping[str, HeldOut],
    context: StageContext,
    settings: BenchmarkSettings,
) -> dict[str, list[Row]]:
    """Every model's answers. They run side by side, as each worker spends its first seconds loading: as many
    workers in all as the recipe says, but one for each model at least."""
    total, done = len(folders) * sum(map(len, sources.values())), 0
    workers = max(1, int(context.placement["data"]["workers"]) // len(folders))
    store = open_folder(context.placement["store"]) / "answers"

    def advance(rows: Sequence[Row]) -> None:
        nonlocal done
        done += len(rows)
        context.progress(done, total, "held-out questions and clips evaluated")

    def answer(model: Model) -> list[Row]:
        kept = AnswerStore(store, model.fingerprint)
        return answer_all(model, sources, kept, workers=workers, on_ray=True, on_rows=advance)

    _connect()
    with ExitStack() as copies, ThreadPoolExecutor(len(folders)) as pool:
        options = Options(slots=settings.batch_size)
        models = [
            model_of(folder, copies.enter_context(local_checkpoint(folder)), options)
            for folder in folders.values()
        ]
        return dict(zip(folders, pool.map(answer, models), strict=True))


def summary(boards: Mapping[str, Scoreboard]) -> dict[str, Any]:
    """Headline numbers as shares of 1, and the same in one line."""
    line = " · ".join(f"{source} {_one_line(board)}" for source, board in boards.items())
    alike = {f"{source}_not_above_blind": ", ".join(b.not_above_blind) for source, b in boards.items()}
    return {
        "headline": line,
        **rounded(headlines_of(boards)),
        **{name: columns for name, columns in alike.items() if columns},
    }


def _one_line(board: Scoreboard) -> str:
    """Such as ``accuracy 93.1 % (blind 41.0 %, chance 38.2 %)``."""
    model, *others = ((line, f"{100 * line.cells[board.headline].value:.1f} %") for line in board.lines)
    beside = ", ".join(f"{line.name} {value}" for line, value in others)
    return f"{model[0].key} {model[1]} ({beside})"


def write(output: Folder, predictions: Predictions, boards: Mapping[str, Scoreboard]) -> None:
    """Write the three files; each appears whole or not at all."""
    rows = [
        {"model": model, "source": source, "benchmark": boards[source].benchmark, **_plain(prediction)}
        for model in (MODEL, BLIND)
        for source, by_model in predictions.items()
        for prediction in by_model.get(model, ())
    ]
    with create(output / "results.parquet") as file:
        pq.write_table(pa.Table.from_pylist(rows, RESULT_SCHEMA), file)
    _write_json(output / "captions.json", captions(predictions))
    _write_json(output / "metrics.json", {source: asdict(board) for source, board in boards.items()})


def _plain(prediction: Prediction) -> dict[str, Any]:
    return {name: value for name, value in asdict(prediction).items() if name in RESULT_SCHEMA.names}


def captions(predictions: Predictions) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every clip frame by frame: model → source → clips in row order."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(dict)
    for source, by_model in predictions.items():
        for model, own in by_model.items():
            clips = [
                {
                    "sample_id": one.sample_id,
                    "row": one.row,
                    "query": one.question,
                    "frames": [asdict(frame) for frame in one.frames],
                }
                for one in own
                if one.frames
            ]
            if clips:
                found[model][source] = clips
    return dict(found)


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
    if board.not_above_blind:
        console.print(f"  not above the blind twin: {', '.join(board.not_above_blind)}", style="yellow")


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
