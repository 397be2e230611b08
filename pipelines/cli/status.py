"""``casa status``: the latest run of a store."""

from __future__ import annotations

from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption
from pipelines.cli.show.format import print_json


def status(store: StoreOption = DEFAULT_STORE, json_: JsonOption = False) -> None:
    """Show the latest run of a store: its stages, Ray and the endpoint.

    Examples:

      casa status

      casa status --store /data/runs --json
    """
    from pipelines.cli.shared.run_handle import latest_run, run_state

    found = run_state(latest_run(store))
    if json_:
        print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, header_style="bold", title=found["recipe"], title_justify="left")
    for column in ("stage", "state", "attempts", "made", "summary"):
        table.add_column(column, no_wrap=column in ("stage", "made"))
    for stage in found["stages"]:
        made = (stage["alias"] or "").partition("@")[2]  # stage@made names the artifact, in all commands
        table.add_row(stage["stage"], stage["state"], str(stage["attempts"]), made, stage["headline"])
    console.print(table)
    if (runner := found["runner"]) is not None:
        console.print(
            f"runner    {runner['state']} ({runner['job']}) {runner['why']}".rstrip(), highlight=False
        )
    console.print(f"Ray       {found['ray'] or found['ray_problem']}", highlight=False)
    console.print(f"endpoint  {found['endpoint'] or 'not running'}", highlight=False)
