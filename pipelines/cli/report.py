"""``casa report``: where a run's page is, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption
from pipelines.cli.show.format import nearby, print_json


def report(
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    output: Annotated[
        Path, typer.Option(help="Folder for a copy, where the store is not on this machine.", file_okay=False)
    ] = Path("report"),
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Print the address of the latest run's report, or of a sweep's comparison. One on S3 is copied here.

    Examples:

      casa report --open

      casa report --store s3://bucket/runs --output my-report
    """
    from casa_core.errors import ConfigError
    from pipelines.cli.shared.run_handle import latest_run
    from pipelines.dag.artifact import read_manifest
    from pipelines.storage.transfer import copy_tree
    from pipelines.storage.uri import open_folder

    run = latest_run(store)
    pages = [stage for stage in run.stages if stage["kind"] in ("report", "compare")]
    folder = open_folder(pages[-1]["folder"]) if pages else None
    manifest = None if folder is None else read_manifest(folder)
    if folder is None or manifest is None:
        raise ConfigError(
            f"The latest run in {store} has no report.",
            "Its report stage has not ended."
            if pages
            else f"It is a run of {run.recipe}, without such a stage.",
            "`casa status` shows its stages; `casa run` goes on.",
        )
    page = folder / open_folder(manifest["summary"]["path"]).name  # in a store that was moved, too
    if not isinstance(page, Path):
        copy_tree(page.parent, output)
        page = output.absolute() / page.name
    if json_:
        print_json({"report": str(page)})
    else:
        print(nearby(page))
    if open_:
        typer.launch(page.as_uri())
