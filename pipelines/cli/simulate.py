"""``casa simulate``: what a recipe's full run costs on a cluster, before it is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.shared.options import (
    JsonOption,
    RateOption,
    RatesOption,
    RecipeArgument,
    SetOption,
)
from pipelines.cli.show.format import print_json

_MACHINES, _DATA = "The machines", "The data"
_NodesOption = Annotated[int, typer.Option(help="Machines.", min=1, rich_help_panel=_MACHINES)]
_NodeFileOption = Annotated[
    Path | None,
    typer.Option(
        help="YAML with what a machine has, where it differs from pipelines/cost/simulate/h100.yaml.",
        dir_okay=False,
        rich_help_panel=_MACHINES,
    ),
]
_NodeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="One setting of the machines: gpu=H200, price=30, nic_gbps=100, mtbf_hours=2000, mfu=0.3. "
        "May be repeated.",
        rich_help_panel=_MACHINES,
    ),
]
_ListingOption = Annotated[
    Path | None,
    typer.Option(
        help="Sizes of the recipe's corpora, as JSON. Otherwise of corpora on this machine, from headers "
        "and a sample, or of the paper's.",
        dir_okay=False,
        rich_help_panel=_DATA,
    ),
]
_QuestionsOption = Annotated[
    int | None,
    typer.Option(
        help="Questions that evaluation asks of each model; those of the paper's nine picture benchmarks "
        "if not given.",
        min=1,
        rich_help_panel=_DATA,
    ),
]
_PlotOption = Annotated[
    Path | None, typer.Option(help="Also draw time, load and cost over 1 to 16 nodes, as SVG.")
]


def simulate(
    recipe: RecipeArgument,
    set_: SetOption = None,
    nodes: _NodesOption = 8,
    node_file: _NodeFileOption = None,
    node: _NodeOption = None,
    rates: RatesOption = None,
    rate: RateOption = None,
    listing: _ListingOption = None,
    questions: _QuestionsOption = None,
    plot: _PlotOption = None,
    json_: JsonOption = False,
) -> None:
    """Simulate a recipe's full run on a cluster: time, storage, network and cost of each stage.

    Nothing runs and no GPU is needed. For each stage it says what would hold it up: cores, the store, the
    packer, GPUs, their memory, gradient traffic, the loader. It counts the failures to expect of so many
    machines, and says which interval between checkpoints is best. A table compares 1 to 16 nodes. What it
    counts on is listed, each number with its source.

    The data are those of `casa data plan`, and training is that of `casa plan --training`. What does not fit
    a GPU is refused with what would make it fit. Memory of activations takes about 20 s to estimate.

    Examples:

      casa simulate casa-helium1-before --nodes 8

      casa simulate casa-qwen-image --nodes 4 --node gpu=H200 --node price=45 --plot scaling.svg

      casa simulate casa-helium1-before --node nic_gbps=100        what if the network were slow?

      casa simulate my.yaml --node-file our_machines.yaml --json
    """
    from pipelines.cli.show.simulation import show_simulation, simulation_as_json
    from pipelines.cost.estimate import check_fits
    from pipelines.cost.simulate.node import read_node
    from pipelines.cost.simulate.plot import draw
    from pipelines.cost.simulate.simulation import PAPERS_QUESTIONS, SCALE, assumptions, over_nodes
    from pipelines.cost.workload import read_rates, workload_to_simulate
    from pipelines.recipe import load_recipe
    from pipelines.storage.atomic import write_whole

    machine, cores = read_node(node_file, node or ()), read_rates(rates, rate or ())
    loaded = load_recipe(recipe, set_ or ())
    work = workload_to_simulate(loaded, set_ or (), recipe, listing)
    asked = questions or PAPERS_QUESTIONS
    found = over_nodes(loaded, work, machine, cores, asked, sorted({*SCALE, nodes}))
    chosen = next(one for one in found if one.machines.nodes == nodes)
    basis = assumptions(chosen, loaded, asked)
    if json_:
        print_json(simulation_as_json(chosen, found, basis))
    else:
        show_simulation(chosen, found, loaded, basis)
    if plot is not None:
        write_whole(plot.absolute(), draw(found, loaded.name), parents=True)
        if not json_:
            print(f"drawn in {plot}")
    check_fits(chosen.training, loaded)
