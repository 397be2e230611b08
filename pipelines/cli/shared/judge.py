"""The judge of ``casa evaluate``: its options, and what it will cost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from casa_core.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.evaluate.judge.judging import Court
    from pipelines.evaluate.tables import TableQuestions
    from pipelines.storage.uri import Folder

JudgeOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Endpoint of the judge of commentaries, as OpenAI's: https://…/v1. Its key: CASA_JUDGE_KEY.",
    ),
]
JudgeModelOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The judge's model, best with its date.")
]
BaselineOption = Annotated[
    Path | None,
    typer.Option(
        help="Commentaries to compare with: JSONL of {video_id, event_id, pred}, or a benchmark's folder of "
        "an evaluation; by default what the person said."
    ),
]


def named_court(url: str | None, model: str | None, baseline: Path | None, store: Folder) -> Court | None:
    """The judge that the options name; None without one.

    Raises:
        ConfigError: Where only some of them are given.
        DataError: Where the baseline cannot be read.
    """
    from pipelines.evaluate.judge.baseline import read_baseline
    from pipelines.evaluate.judge.client import Judge
    from pipelines.evaluate.judge.judging import Court

    if url is None and model is None and baseline is None:
        return None
    if not (url and model):
        raise ConfigError(
            "The judge is named by halves.",
            "`--judge` is its address, `--judge-model` its model there; `--baseline` needs both.",
            "Give both.",
        )
    return Court(
        judge=Judge(url, model), store=store, baseline=None if baseline is None else read_baseline(baseline)
    )


def state_cost(court: Court, tables: Sequence[TableQuestions], variants: int, *, yes: bool) -> None:
    """Say what the judge will be asked, and on a terminal ask whether to go on.

    Raises:
        typer.Abort: If not.
    """
    questions = sum(len(table) for table in tables if table.benchmark.metric.needs_judge)
    if not questions:
        return
    calls, tokens = court.cost(questions * variants)
    print(
        f"Judge {court.judge.model}: at most {calls} calls and about {tokens} prompt tokens, less what it "
        "was asked before; and one call now, to see that it answers.",
        file=sys.stderr,
    )
    if sys.stdin.isatty() and not yes:
        typer.confirm("Go on?", abort=True)


def judged(done: int, total: int) -> None:
    """Show how far the judge is."""
    terminal = sys.stderr.isatty()
    if terminal or done == total:
        print(
            ("\r\x1b[K" if terminal else "") + f"{done} of {total} judgements",
            end="" if terminal and done < total else "\n",
            file=sys.stderr,
            flush=True,
        )
