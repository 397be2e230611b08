"""``casa prepare``: from a recipe to its packed data, and no further."""

from __future__ import annotations

from pipelines.cli.shared.options import (
    DEFAULT_RECIPE,
    JsonOption,
    PlainOption,
    RecipeArgument,
    RecipeStoreOption,
    SetOption,
    overrides_of,
)


def prepare(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    set_: SetOption = None,
    store: RecipeStoreOption = None,
    json_: JsonOption = False,
    plain: PlainOption = False,
) -> None:
    """Prepare a recipe's data: make corpora, clean them, pack them. Nothing is trained.

    The same stages as those of `casa run`, which later finds them done. Interrupted or killed, the same
    command goes on where it was, shard by shard.

    Examples:

      casa prepare quickstart

      casa prepare my.yaml --set data.max_failures=0.001

      casa prepare my.yaml --json | jq 'select(.event == "result")'
    """
    from pipelines.cli.shared.run_handle import open_run, run_stages
    from pipelines.cli.show.prepared import show_prepared
    from pipelines.dag.plan import DATA_KINDS

    opened = open_run(recipe, overrides_of(set_, store), DATA_KINDS)
    manifests = run_stages(opened, f"casa prepare {recipe}", as_json=json_, plain=plain)
    show_prepared(opened.stages, manifests, as_json=json_)
