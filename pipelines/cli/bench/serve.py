"""``casa bench serve``: an endpoint under load that does not wait for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption
from pipelines.cli.show.format import print_json

if TYPE_CHECKING:
    from pipelines.bench.figures import Figures, Spread
    from pipelines.bench.observed import Observed
    from pipelines.bench.plan import Load

UrlArgument = Annotated[
    str | None,
    typer.Argument(help="The endpoint; by default that of the store's latest run.", metavar="[URL]"),
]
RateOption = Annotated[float, typer.Option(help="Answers asked for per second, on average.", min=0)]
StreamsOption = Annotated[float, typer.Option(help="Live sessions begun per minute, on average.", min=0)]
SecondsOption = Annotated[float, typer.Option(help="How long work comes.", min=1)]
StreamSecondsOption = Annotated[float, typer.Option(help="How long a session sends frames.", min=1)]
FpsOption = Annotated[float, typer.Option(help="Frames per second of a session.", min=0.1, max=60)]
DeadlineOption = Annotated[
    float, typer.Option(help="Seconds from a frame to its last word, to be on time.", min=0.001)
]
TokensOption = Annotated[int, typer.Option(help="Bound on an answer, in tokens.", min=1)]
OutputOption = Annotated[Path, typer.Option(help="Folder for result.json and index.html.", file_okay=False)]


def serve(
    url: UrlArgument = None,
    rate: RateOption = 2.0,
    streams: StreamsOption = 0.0,
    seconds: SecondsOption = 30.0,
    stream_seconds: StreamSecondsOption = 15.0,
    fps: FpsOption = 2.0,
    deadline: DeadlineOption = 0.5,
    tokens: TokensOption = 32,
    model: Annotated[str | None, typer.Option(help="A served model; the first one by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of the arrivals and the pictures.")] = 0,
    output: OutputOption = Path("bench-serve"),
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Ask an endpoint at times that are planned before the run, and measure from those times.

    Questions about drawn pictures are asked, and live sessions begun, as independent users do: by chance, at
    an average rate, and whether or not earlier ones have been answered (an open loop). A slow endpoint gets
    no fewer calls, and what a call waits before it is even sent counts.

    Prints a table; the folder has all of it as JSON, and a page with charts.

    Examples:

      casa bench serve http://127.0.0.1:8000

      casa bench serve --rate 8 --seconds 120 --seed 1

      casa bench serve http://gpu-box:8000 --rate 4 --streams 30 --fps 4 --json
    """
    from infra import endpoint_client
    from pipelines.bench.figures import figures
    from pipelines.bench.plan import Load
    from pipelines.bench.run import observe
    from pipelines.cli.shared.run_handle import latest_run

    endpoint = (url or latest_run(store).endpoint).rstrip("/")
    load = Load(
        rate=rate,
        streams=streams,
        seconds=seconds,
        stream_seconds=stream_seconds,
        fps=fps,
        deadline=deadline,
        tokens=tokens,
        seed=seed,
    )
    name = model or endpoint_client.served_model(endpoint)
    seen = observe(endpoint, name, load, _progress)
    found = figures(seen)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    result = _write(output, endpoint, name, load, found, seen)
    if json_:
        print_json(result)
    else:
        _show(found, output)


def _progress(seen: Observed) -> None:
    if sys.stderr.isatty():
        done = sum(one.fate != "waiting" for one in seen.answers)
        views = sum(one.fate != "waiting" for one in seen.sessions)
        line = f"answers {done} of {len(seen.answers)}, live sessions {views} of {len(seen.sessions)}"
        print(f"\r{line}", end="", file=sys.stderr, flush=True)


def _write(folder: Path, url: str, model: str, load: Load, found: Figures, seen: Observed) -> dict[str, Any]:
    from dataclasses import asdict

    from pipelines.bench.page import render
    from pipelines.storage.atomic import write_whole

    result = {"url": url, "model": model, "load": asdict(load), **found.plain()}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    facts = (
        f"{url}: {load.rate:g} answers per second and {load.streams:g} live sessions per minute for "
        f"{load.seconds:g} seconds, at times of their own (seed {load.seed})."
    )
    write_whole(folder / "index.html", render(f"{model} under load", facts, table_of(found), found, seen))
    return result


def table_of(found: Figures) -> list[tuple[str, str]]:
    """The figures as rows."""
    rows = [
        ("answers", _fates(found.answers)),
        ("time to first token, P50 / P95 / P99", _spread(found.first_token)),
        ("time per output token", _spread(found.per_token)),
        ("whole answer", _spread(found.answer)),
        ("answers per second", f"{found.answers_per_second:.2f}"),
        ("tokens per second", f"{found.tokens_per_second:.1f}"),
        ("sent after the planned time", _spread(found.sent_late)),
    ]
    if found.sessions:
        rows += [
            ("live sessions", _fates(found.sessions)),
            ("frames", _fates(found.frames)),
            ("deadline attainment", "-" if not found.frames else f"{found.attainment:.2%}"),
            ("caption", _spread(found.caption)),
            ("underruns / stall time", f"{found.underruns} / {found.stall_s:.1f} s"),
        ]
    return rows


def _show(found: Figures, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in table_of(found):
        shown.add_row(name, value)
    console = Console()
    console.print(shown)
    if found.generator_was_slow:
        console.print("Calls were sent late: this machine, not the endpoint, is part of these figures.")
    console.print(f"{folder}/index.html has charts, {folder}/result.json all figures.", soft_wrap=True)


def _fates(counts: dict[str, int]) -> str:
    total = f"{sum(counts.values())} planned"
    return ", ".join([total, *(f"{count} {fate}" for fate, count in sorted(counts.items()))])


def _spread(one: Spread) -> str:
    values = [one.p50, one.p95, one.p99]
    if values[0] != values[0]:
        return "-"
    return " / ".join(f"{value * 1000:,.0f}" for value in values) + " ms"
