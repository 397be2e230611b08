"""``casa evaluate``: a checkpoint's scores on the paper's benchmarks, and on one's own."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.cli.shared.judge import BaselineOption, JudgeModelOption, JudgeOption
from pipelines.cli.shared.modes import MaskOption, MaxSideOption, VideoTokensOption, masks, sides
from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption
from pipelines.cli.show.format import nearby, print_json
from pipelines.text_format import duration

if TYPE_CHECKING:
    from pipelines.evaluate.evaluation import Options, Progress
    from pipelines.evaluate.results import BenchmarkResult
    from pipelines.evaluate.tables import TableQuestions
    from pipelines.storage.uri import Folder

EVERY_S = 10.0
"""Between two lines of progress where there is no terminal."""

CheckpointArgument = Annotated[
    str | None,
    typer.Argument(
        help="A checkpoint or a train artifact: a folder, an s3:// URI, or a stage of the latest run.",
        metavar="[CHECKPOINT]",
    ),
]
BenchmarksOption = Annotated[
    str | None,
    typer.Option(
        help="Names, and YAML files of your own benchmarks, with commas between them. Without: a list.",
        metavar="NAME,…",
    ),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=PLACE",
        help="Where a benchmark's data are: a folder, a parquet file or a URI; by default on the hub. "
        "hf://datasets/org/name@REVISION pins them. May be repeated.",
    ),
]
LimitOption = Annotated[int | None, typer.Option(help="Ask the first so many questions of each only.", min=1)]
WorkersOption = Annotated[
    int | None, typer.Option(help="Engines on a Ray cluster; by default one in this process.", min=1)
]
AddressOption = Annotated[
    str | None, typer.Option(help="A Ray cluster to join: auto, or host:port. Without: one on this machine.")
]
OutputOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the results; by default evaluations/MODEL in the store.", file_okay=False),
]
ModeOption = Annotated[
    Literal["offline", "streaming"],
    typer.Option(help="Show a video as a whole, or frame by frame as a live stream."),
]
TokensOption = Annotated[
    int | None, typer.Option(help="Longest answer, tokens; by default the benchmark's.", min=1)
]
PicturesOption = Annotated[
    int, typer.Option(help="Questions of each benchmark that the page shows with their pictures.", min=0)
]


def evaluate(
    checkpoint: CheckpointArgument = None,
    benchmarks: BenchmarksOption = None,
    data: DataOption = None,
    limit: LimitOption = None,
    mode: ModeOption = "offline",
    max_side: MaxSideOption = None,
    mask: MaskOption = None,
    max_video_tokens: VideoTokensOption = None,
    judge: JudgeOption = None,
    judge_model: JudgeModelOption = None,
    baseline: BaselineOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask a judge without asking you first.")] = False,
    name: Annotated[str | None, typer.Option(help="The model's name in results.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (as stored), fp32 or bf16.")] = "auto",
    quantize: Annotated[str, typer.Option(help="none, or int8: on CPUs.")] = "none",
    max_new_tokens: TokensOption = None,
    slots: Annotated[int, typer.Option(help="Questions that an engine answers together.", min=1)] = 16,
    workers: WorkersOption = None,
    gpus: Annotated[float, typer.Option(help="GPUs of each worker.", min=0)] = 0.0,
    address: AddressOption = None,
    output: OutputOption = None,
    pictures: PicturesOption = 300,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Evaluate a checkpoint: scores with intervals beside published ones, and a page of every answer.

    An answer is kept as it comes, by what it depends on: the same command again goes on where it was ended,
    and asks only what is missing. How many workers there are changes nothing in the answers.

    Examples:

      casa evaluate train --benchmarks chartqa,docvqa

      casa evaluate runs/train/4a84…/model --benchmarks mme --data mme=data/MME --limit 200

      casa evaluate train --benchmarks signs.yaml,textvqa --data textvqa=hf://datasets/lmms-lab/textvqa@9c0699e

      casa evaluate train --benchmarks docvqa --workers 8 --gpus 1 --address auto

      casa evaluate train --benchmarks mvbench --mode streaming --data mvbench=/data/MVBench

      casa evaluate train --benchmarks chartqa --max-side 448,672,896

      casa evaluate train --benchmarks livesports --judge https://api.openai.com/v1 --judge-model gpt-4o
    """
    if checkpoint is None or benchmarks is None:
        _list()
        return
    from pipelines.cli.shared.artifacts import find_artifact
    from pipelines.cli.shared.judge import named_court
    from pipelines.dag.checkpoints import find_checkpoint, model_name
    from pipelines.evaluate.evaluation import Options

    found = find_checkpoint(find_artifact(checkpoint, store))
    tables = _tables(benchmarks, data or [], limit, max_new_tokens)
    given: dict[str, Any] = {"dtype": dtype, "quantize": quantize, "slots": slots, "mode": mode, "gpus": gpus}
    options = Options(
        **given,
        workers=workers or 1,
        on_ray=workers is not None or address is not None,
        max_video_tokens=max_video_tokens,
        court=named_court(judge, judge_model, baseline, store / "judgements"),
    )
    variants = [replace(options, max_side=side, mask=one) for side in sides(max_side) for one in masks(mask)]
    own = name or model_name(found)
    folder = output or store / "evaluations" / own
    results = _run(own, found, tables, variants, (store / "answers", folder), address=address, yes=yes)
    _present(results, _page(folder, tables, pictures), as_json=json_)


def _page(folder: Folder, tables: Sequence[TableQuestions], pictures: int) -> Folder:
    from pipelines.evaluate.pages.evaluation import write_page

    return write_page(folder, tables, pictures)


def _run(
    name: str,
    checkpoint: Folder,
    tables: Sequence[TableQuestions],
    variants: Sequence[Options],
    places: tuple[Folder, Folder],
    *,
    address: str | None,
    yes: bool,
) -> list[BenchmarkResult]:
    """Evaluate in each of some settings; ``places`` keep answers and results."""
    from pipelines.cli.shared.judge import judged, state_cost
    from pipelines.evaluate.cluster import joined_cluster
    from pipelines.evaluate.evaluation import evaluate

    own = variants[0]
    for table in tables:
        print(f"{table.benchmark.title}: {len(table)} questions in {table.root}", file=sys.stderr)
    if own.court:
        state_cost(own.court, tables, len(variants), yes=yes)
    results: list[BenchmarkResult] = []
    with joined_cluster(address, own.workers) if own.on_ray else nullcontext():
        for one in variants:
            results += evaluate(name, checkpoint, tables, one, *places, _Shown(), judged)
    return results


def _tables(
    names: str, data: Sequence[str], limit: int | None, max_new_tokens: int | None
) -> list[TableQuestions]:
    from casa_core.errors import ConfigError
    from pipelines.evaluate.benchmarks.catalogue import benchmark_named
    from pipelines.evaluate.benchmarks.own import own_benchmark
    from pipelines.evaluate.tables import open_tables

    wanted = [
        own_benchmark(name) if name.endswith((".yaml", ".yml")) else benchmark_named(name)
        for name in map(str.strip, names.split(","))
        if name
    ]
    known = [benchmark.name for benchmark in wanted]
    if twice := next((name for name in known if known.count(name) > 1), None):
        raise ConfigError(f"The benchmark {twice} is named twice.", "", "Name each once.")
    places = {name: place for name, _, place in (one.partition("=") for one in data)}
    if stray := [name for name in places if name not in known]:
        raise ConfigError(
            f"`--data {stray[0]}=…` is for a benchmark that is not evaluated.",
            f"Evaluated are {', '.join(known)}.",
            "Name it in --benchmarks too, or leave its data out.",
        )
    return [
        open_tables(benchmark, places.get(benchmark.name), most=limit, longest=max_new_tokens)
        for benchmark in wanted
    ]


class _Shown:
    """Progress on standard error: one line that changes on a terminal, else one every ten seconds."""

    def __init__(self) -> None:
        self._began = self._shown = time.monotonic()

    def __call__(self, progress: Mapping[str, Progress]) -> None:
        now = time.monotonic()
        done, total = (sum(getattr(one, name) for one in progress.values()) for name in ("done", "total"))
        terminal = sys.stderr.isatty()
        if done < total and now < self._shown + (0.2 if terminal else EVERY_S):
            return
        self._shown = now
        reused = sum(one.reused for one in progress.values())
        asked = done - reused
        rest = (total - done) * (now - self._began) / asked if asked else 0.0
        left = f", {duration(rest)} left" if rest else ""
        scores = ", ".join(
            f"{name} {one.mean:.1f} % of {one.done}"
            for name, one in progress.items()
            if one.done and not one.judged
        )
        line = f"{done} of {total} questions{left}" + (f"; so far {scores}" if scores else "")
        end = "\n" if not terminal or done == total else ""
        print(f"\r\x1b[K{line}" if terminal else line, end=end, file=sys.stderr, flush=True)


def _present(results: Sequence[BenchmarkResult], page: Folder, *, as_json: bool) -> None:
    if as_json:
        print_json([asdict(result) for result in results])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{results[0].checkpoint['name']}: scores and 95 % intervals", title_justify="left")
    for column in ("benchmark", "score", "interval", "unit", "questions", "failed", "published"):
        table.add_column(column, justify="left" if column in ("benchmark", "published", "unit") else "right")
    for one in results:
        score, failed = one.score, sum(one.failed.values())
        beside = next((f"{p['score']:g} {p['model']} ({p['source']})" for p in one.published), "")
        interval = f"{score.low:.1f} to {score.high:.1f}"
        counts = (str(one.questions), str(failed or ""))
        table.add_row(one.title, f"{score.value:.1f}", interval, score.unit, *counts, beside)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for one in results:
        for reason, count in one.failed.items():
            console.print(f"{one.title}: {count} without an answer: {reason}", markup=False, style="yellow")
    print(f"Every answer: {nearby(str(page))}")


def _list() -> None:
    from pipelines.evaluate.benchmarks.catalogue import CATALOGUE

    width = max(map(len, CATALOGUE))
    for name, benchmark in CATALOGUE.items():
        print(f"{name:<{width}}  {benchmark.title}: {benchmark.metric.name}, {benchmark.repository}")
    print("\nOr the YAML file of one of your own: docs/evaluation.md.")
