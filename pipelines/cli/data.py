"""``casa data``: looking into prepared data, and forecasting what preparing it comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import DEFAULT_STORE, JsonOption, SetOption, StoreOption, print_json

app = typer.Typer(
    no_args_is_help=True,
    help="""Look into prepared data, and plan its preparation.

    Examples:

      casa data plan my.yaml --nodes 8 --cpus-per-node 64

      casa data inspect pack --sequence 12
    """,
)
_CLUSTER = "The cluster"


@app.command("inspect")
def inspect(
    artifact: Annotated[
        str, typer.Argument(help="Folder or s3:// URI of a clean or pack artifact, or a stage's name.")
    ],
    sequence: Annotated[int | None, typer.Option(help="Which packed sequence, from 0.", min=0)] = None,
    row: Annotated[int | None, typer.Option(help="Which row of a clean artifact, from 0.", min=0)] = None,
    split: Annotated[str, typer.Option(help="Split of a clean artifact: train or test.")] = "train",
    page: Annotated[Path | None, typer.Option(help="Write the sequence with its pictures as HTML.")] = None,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Show a packed sequence, or a row of a clean artifact.

    Of a sequence: its documents, their attention windows, trained text underlined and masked text dim,
    pictures with their sizes and tokens, and how full both budgets are.

    Examples:

      casa data inspect pack --sequence 12

      casa data inspect pack --sequence 12 --page sequence.html

      casa data inspect clean-vqa --row 80

      casa data inspect s3://bucket/runs/pack/9f2c… --json
    """
    from pipelines.cli.data_inspect import inspect_artifact

    inspect_artifact(artifact, sequence=sequence, row=row, split=split, page=page, store=store, as_json=json_)


@app.command("plan")
def plan(
    recipe: Annotated[str | None, typer.Argument(help="A recipe whose corpora are there.")] = None,
    set_: SetOption = None,
    listing: Annotated[
        Path | None, typer.Option(help="A listing of corpora as JSON, instead of a recipe.", dir_okay=False)
    ] = None,
    text_tokens: Annotated[int, typer.Option(help="Text budget, with --listing.", min=1)] = 2048,
    image_tokens: Annotated[int, typer.Option(help="Image budget, with --listing.", min=1)] = 20_480,
    max_side: Annotated[int, typer.Option(help="R_max of pictures, with --listing.", min=28)] = 896,
    max_frame_side: Annotated[int, typer.Option(help="R_max of frames, with --listing.", min=28)] = 448,
    nodes: Annotated[int, typer.Option(help="Machines.", min=1, rich_help_panel=_CLUSTER)] = 1,
    cpus_per_node: Annotated[int, typer.Option(help="Cores of each.", min=1, rich_help_panel=_CLUSTER)] = 8,
    network_gbps: Annotated[
        float, typer.Option(help="Network of each, Gbit/s.", min=0.001, rich_help_panel=_CLUSTER)
    ] = 10.0,
    rates: Annotated[
        Path | None,
        typer.Option(help="Measured rates as JSON.", dir_okay=False, rich_help_panel=_CLUSTER),
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="What a core does a second, instead of the measured rate: clean_megapixels, "
            "video_megapixels (of frames used), encode_tokens, or pack_samples. May be repeated.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Forecast sequences, tokens, storage and time of preparing data, without reading it.

    Of a recipe, headers are read and a bounded sample of records; of a listing, nothing. Rates of one core
    come from this project's benchmarks unless given, and each is shown with its source.

    Examples:

      casa data plan my.yaml --nodes 8 --cpus-per-node 64 --network-gbps 25

      casa data plan --listing examples/paper_listing.json --nodes 8 --cpus-per-node 64
    """
    from pipelines.cli.data_plan import listed, planned, read_rates
    from pipelines.cli.show_plan import plan_as_json, show_plan
    from pipelines.cost.forecast import Cluster, forecast

    asked = (recipe, set_ or ())
    cluster = Cluster(
        nodes=nodes,
        cpus_per_node=cpus_per_node,
        network_gbps=network_gbps,
        rates=read_rates(rates, rate or ()),
    )
    if listing is not None:
        work = listed(listing, asked, text_tokens, image_tokens, max_side, max_frame_side)
    else:
        work = planned(*asked)
    found = forecast(work.listing, work.budgets, work.images, cluster)
    if json_:
        print_json(plan_as_json(found, work.budgets, cluster))
    else:
        show_plan(found, work.budgets, cluster)
