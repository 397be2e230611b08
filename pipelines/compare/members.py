"""Scores and training figures of each member of a sweep, read from its artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from casa_core.errors import StoreError
from pipelines.evaluate.held_out.board import MODEL
from pipelines.storage.uri import Folder
from pipelines.train import metrics

LAST = 50
"""Steps whose loss is averaged at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One trained model of a sweep.

    Attributes:
        variant, seed: Identify it.
        scores: Column → share of right answers; the headline first.
        chance: Column → the same for always giving a question type's most frequent answer.
        questions: Number of held-out questions.
        parameters: Number of the model's parameters.
        loss: Mean loss of the last `LAST` steps, nats per answer token.
        seconds: Wall-clock time of all training steps.
        operations_per_token: Floating-point operations of training per text token.
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


def read_member(variant: str, seed: int, trained: Folder, evaluated: Folder) -> Trained:
    """Read one member's artifacts.

    Args:
        variant, seed: Identify the member.
        trained: Its train artifact.
        evaluated: Its evaluate artifact.

    Raises:
        StoreError: If a file of either is missing.
    """
    try:
        boards = json.loads((evaluated / "metrics.json").read_text())
        manifest = json.loads((trained / "model" / "manifest.json").read_text())
    except FileNotFoundError as error:
        raise StoreError(
            f"`{error.filename or error}` is missing.",
            f"Variant {variant} with seed {seed} is compared from it.",
            "Remove that artifact's folder and run the sweep again.",
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
    """Scores and chance by column, headlines first, and the number of questions.

    With more than one source, a column's name begins with the source's.
    """
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
