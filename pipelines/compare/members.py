"""What each member of a sweep did, read from its artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casa_core.errors import StoreError
from pipelines.evaluate.benchmarks.base import MODEL
from pipelines.train import metrics

LAST = 50
"""Steps whose loss is averaged at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One training of a sweep.

    Attributes:
        variant, seed: Which.
        scores: Column → share of right answers; the headline first.
        chance: The same for always giving a question's most frequent answer.
        questions: How many were asked.
        parameters: Of the model.
        loss: Mean of the last steps, nats an answer token.
        seconds: Of all training steps, wall clock.
        operations_per_token: Of the model in training, a text token.
    """

    variant: str
    seed: int
    scores: dict[str, float]
    chance: dict[str, float]
    questions: int
    parameters: int
    loss: float
    seconds: float
    operations_per_token: float


def read_member(variant: str, seed: int, trained: Path, examined: Path) -> Trained:
    """Read one member's artifacts.

    Args:
        variant, seed: Which it is.
        trained: Its train artifact.
        examined: Its evaluate artifact.

    Raises:
        StoreError: If a file of theirs is missing.
    """
    try:
        boards = json.loads((examined / "metrics.json").read_text())
        manifest = json.loads((trained / "model" / "manifest.json").read_text())
    except FileNotFoundError as error:
        raise StoreError(
            f"{error.filename} is not there",
            f"variant {variant} with seed {seed} is compared from it",
            "remove that artifact's folder and run the sweep again",
        ) from error
    steps = metrics.read_lines(trained / metrics.FILE)
    scores, chance, questions = _scores(boards)
    operations = sum(step["tflops"] * step["seconds"] * step["workers"] for step in steps) * 1e12
    return Trained(
        variant=variant,
        seed=seed,
        scores=scores,
        chance=chance,
        questions=questions,
        parameters=manifest["parameters"],
        loss=sum(step["loss"] for step in steps[-LAST:]) / len(steps[-LAST:]),
        seconds=sum(step["seconds"] for step in steps),
        operations_per_token=operations / sum(step["text_tokens"] for step in steps),
    )


def _scores(boards: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float], int]:
    """Columns of every source's board, headlines first; with more than one source, by its name."""
    scores: dict[str, float] = {}
    chance: dict[str, float] = {}
    questions = 0
    for source, board in boards.items():
        lines = {line["name"]: line["cells"] for line in board["lines"]}
        questions += lines[MODEL][board["headline"]]["count"]
        for column in _headline_first(board):
            name = column if len(boards) == 1 else f"{source}: {column}"
            scores[name] = lines[MODEL][column]["value"]
            if column in lines.get("chance", {}):
                chance[name] = lines["chance"][column]["value"]
    return scores, chance, questions


def _headline_first(board: Mapping[str, Any]) -> Sequence[str]:
    return [board["headline"], *(column for column in board["columns"] if column != board["headline"])]
