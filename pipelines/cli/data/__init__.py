"""``casa data``: commands about corpora and prepared data, one module per command."""

from __future__ import annotations

import typer

from pipelines.cli.data import card, hash, inspect, plan

app = typer.Typer(
    no_args_is_help=True,
    help="""Look into prepared data, plan its preparation, list pictures to keep out of it.

    Examples:

      casa data plan my.yaml --nodes 8 --cpus-per-node 64

      casa data inspect pack --sequence 12

      casa data card pack

      casa data hash eval/images eval_hashes.parquet
    """,
)
app.command("inspect")(inspect.inspect)
app.command("plan")(plan.plan)
app.command("card")(card.card)
app.command("hash")(hash.hash_pictures)
