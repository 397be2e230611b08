"""``casa data plan``: a forecast of what preparing data comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.shared.options import JsonOption, RateOption, RatesOption, SetOption
from pipelines.cli.show.format import print_json

_CLUSTER = "The machines"


def plan(
    recipe: Annotated[str | None, typer.Argument(help="A recipe whose corpora are there.")] = None,
    set_: SetOption = None,
    listing: Annotated[
        Path | None,
        typer.Option(
            help="A listing of corpora as JSON, instead of a recipe: a file, or paper or livecc.",
            dir_okay=False,
        ),
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
    rates: RatesOption = None,
    rate: RateOption = None,
    json_: JsonOption = False,
) -> None:
    """Forecast sequences, tokens, storage and time of preparing data, without reading it.

    A recipe's corpora are read as far as headers and a bounded sample of records; with a listing, nothing is
    read. Rates of one core come from this project's benchmarks unless given; each is shown with its source.

    Examples:

      casa data plan my.yaml --nodes 8 --cpus-per-node 64 --network-gbps 25

      casa data plan --listing paper --nodes 8 --cpus-per-node 64
    """
    from pipelines.cli.show.forecast import forecast_as_json, show_forecast
    from pipelines.cost.forecast import Cluster, forecast
    from pipelines.cost.workload import read_rates, workload_of_listing, workload_of_recipe

    asked = (recipe, set_ or ())
    cluster = Cluster(
        nodes=nodes,
        cpus_per_node=cpus_per_node,
        network_gbps=network_gbps,
        rates=read_rates(rates, rate or ()),
    )
    if listing is not None:
        work = workload_of_listing(listing, asked, text_tokens, image_tokens, max_side, max_frame_side)
    else:
        work = workload_of_recipe(*asked)
    found = forecast(work.listing, work.budgets, work.images, cluster)
    if json_:
        print_json(forecast_as_json(found, work.budgets, cluster, work.inventories))
    else:
        show_forecast(found, work.budgets, cluster, work.inventories)
