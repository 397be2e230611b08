"""``casa data``: commands about corpora and prepared data, one module per command."""

from __future__ import annotations

import typer

from pipelines.cli.data import inspect, plan

app = typer.Typer(
    no_args_is_help=True,
    help="""Look into prepared data, and plan its preparation.

    Examples:

      casa data plan my.yaml --nodes 8 --cpus-per-node 64

      casa data inspect pack --sequence 12
    """,
)
app.command("inspect")(inspect.inspect)
app.command("plan")(plan.plan)
