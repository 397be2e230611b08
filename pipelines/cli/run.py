"""``casa run``: from a recipe to its report and endpoint."""

from __future__ import annotations

from pipelines.cli.shared.options import DEFAULT_RECIPE, JsonOption, PlainOption, RecipeArgument, SetOption


def run(
    recipe: RecipeArgument = DEFAULT_RECIPE,
    set_: SetOption = None,
    json_: JsonOption = False,
    plain: PlainOption = False,
) -> None:
    """Run a recipe: whatever is not done yet, in order, each stage as a Ray job.

    Stages already made are skipped. Interrupted or killed, the same command goes on where it was: jobs that
    still run are watched again, and training continues from its last checkpoint.

    Examples:

      casa run                                     about ten minutes, 2 cores

      casa run quickstart --set train.steps=400    trains again; data is kept

      casa run my.yaml --set where.ray.address=http://head:8265

      casa run --json | jq 'select(.event == "result")'
    """
    from pipelines.cli.shared.run_handle import open_run, run_stages
    from pipelines.cli.show.results import show_results

    opened = open_run(recipe, set_ or ())
    manifests = run_stages(opened, f"casa run {recipe}", as_json=json_, plain=plain)
    show_results(opened.recipe, opened.stages, manifests, as_json=json_)
