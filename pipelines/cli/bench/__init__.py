"""``casa bench``: measure what runs, one module per command."""

from __future__ import annotations

import typer

from pipelines.cli.bench import serve

app = typer.Typer(
    no_args_is_help=True,
    help="""Measure an endpoint under load.

    Examples:

      casa bench serve http://127.0.0.1:8000 --rate 4 --streams 12
    """,
)


@app.callback()
def bench() -> None:
    """Measure an endpoint under load.

    Examples:

      casa bench serve http://127.0.0.1:8000 --rate 4 --streams 12
    """


app.command("serve")(serve.serve)
