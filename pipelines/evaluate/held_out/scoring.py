"""Held-out scores of models, from the runner's rows; and of one model as it is, in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from casa_core.errors import DataError
from pipelines.evaluate.evaluation import Options, model_of
from pipelines.evaluate.held_out.board import MODEL, BenchmarkSettings, Prediction, Scoreboard
from pipelines.evaluate.held_out.questions import HeldOut
from pipelines.evaluate.kept.answers import AnswerStore
from pipelines.evaluate.runner import Row, answer_all
from pipelines.storage.transfer import local_copy
from pipelines.storage.uri import Folder

Predictions = dict[str, dict[str, list[Prediction]]]
"""Source → model → its predictions, in the order of the questions."""


def predictions_of(sources: Mapping[str, HeldOut], rows: Mapping[str, Sequence[Row]]) -> Predictions:
    """What the runner's rows of each model come to.

    Raises:
        DataError: If a question could not be answered.
    """
    for model, own in rows.items():
        if failed := [row for row in own if row["error"]]:
            first = failed[0]
            raise DataError(
                f"{len(failed)} of {len(own)} held-out questions could not be answered by {model}.",
                f"{first['error']} That is the first of them, {first['benchmark']} {first['question_id']}.",
                "Leave the sample out of the held-out split, or raise what bounds it.",
            )
    return {
        name: {
            model: list(source.predictions(row for row in own if row["benchmark"] == name))
            for model, own in rows.items()
        }
        for name, source in sources.items()
    }


def boards_of(
    sources: Mapping[str, HeldOut], predictions: Predictions, settings: BenchmarkSettings
) -> dict[str, Scoreboard]:
    """One score board per source."""
    return {name: own.benchmark.score(predictions[name], settings) for name, own in sources.items()}


def headlines_of(boards: Mapping[str, Scoreboard]) -> dict[str, float]:
    """The headline of each line of each board, as a share of 1, named ``<source>_<measure>``."""
    return {f"{source}_{key}": value for source, b in boards.items() for key, value in b.headlines().items()}


def score_model(
    checkpoint: Folder, sources: Mapping[str, Folder], settings: BenchmarkSettings, most: int
) -> dict[str, float]:
    """The headlines of one model on some questions of each source, without baselines.

    Args:
        sources: Source → clean artifact; one without a held-out split is left out.
        most: Questions of each source, evenly spread.

    Raises:
        DataError: If a question could not be answered.
    """
    found = {name: HeldOut.of(folder, settings, most) for name, folder in sources.items()}
    asked = {name: source for name, source in found.items() if len(source)}
    with local_copy(checkpoint) as folder, tempfile.TemporaryDirectory(prefix="casa-scores-") as store:
        model = model_of(folder, folder, Options(slots=settings.batch_size))
        rows = answer_all(model, asked, AnswerStore(Path(store), model.fingerprint))
    boards = boards_of(asked, predictions_of(asked, {MODEL: rows}), settings)
    own = {f"{name}_{board.lines[0].key}" for name, board in boards.items()}
    return rounded({name: value for name, value in headlines_of(boards).items() if name in own})


def rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    """To the digits that a summary has."""
    return {name: round(value, 4) for name, value in numbers.items()}
