"""``casa sweep``: variants of a recipe, trained with several seeds and compared."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.shared.options import (
    JsonOption,
    PlainOption,
    RecipeArgument,
    RecipeStoreOption,
    SetOption,
    overrides_of,
)
from pipelines.cli.show.format import print_json_line


def sweep(
    recipe: RecipeArgument = "ablation",
    set_: SetOption = None,
    store: RecipeStoreOption = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=[V,V]",
            help="Compare these values of a setting, instead of the recipe's variants. Several make all "
            "combinations.",
        ),
    ] = None,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Show what it would make, and what is there.")
    ] = False,
    json_: JsonOption = False,
    plain: PlainOption = False,
) -> None:
    """Train variants of a recipe with several seeds each, examine all, and compare them.

    The recipe's section `sweep` names the variants, as settings of any stage laid over its own, and the
    seeds. What members have in common, such as their data, is made once. Interrupted, the same command goes
    on; a variant or seed that is added trains alone. The result is a table with intervals, a plot and a page.

    Examples:

      casa sweep                                         the paper's ablation in miniature

      casa sweep ablation --set sweep.seeds=[0,1,2,3,4]  two more of each

      casa sweep my.yaml --set train.steps=2000

      casa sweep quickstart --over train.learning_rate=[1e-3,3e-3] --set sweep.seeds=[0]
    """
    from pipelines.cli.shared.run_handle import open_sweep, run_stages
    from pipelines.cli.show.plan import show_plan
    from pipelines.storage.uri import open_folder

    opened = open_sweep(recipe, overrides_of(set_, store), over or ())
    if only_plan:
        show_plan(opened.stages, as_json=json_)
        return
    manifests = run_stages(opened, f"casa sweep {recipe}", as_json=json_, plain=plain)
    compared = manifests["compare"]["summary"]
    folder = open_folder(compared["path"]).parent
    if json_:
        print_json_line({"event": "result", "conclusion": compared["headline"], "folder": str(folder)})
        return
    print(f"\n{(folder / 'table.md').read_text()}\n{compared['path']}")
