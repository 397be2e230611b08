"""``casa score``: an evaluation's answers by the present rules."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pipelines.cli.shared.options import JsonOption
from pipelines.cli.show.format import nearby, print_json


def score(
    folder: Annotated[str, typer.Argument(help="Output of `casa evaluate`, or a benchmark's folder in it.")],
    json_: JsonOption = False,
) -> None:
    """Score an evaluation's answers anew, by the present versions of their metrics. Needs no checkpoint.

    Examples:

      casa score runs/evaluations/helium

      casa score s3://bucket/runs/evaluations/helium --json
    """
    from pipelines.evaluate.pages.evaluation import write_page
    from pipelines.evaluate.rescoring import rescore
    from pipelines.evaluate.results import result_folders
    from pipelines.storage.uri import open_folder

    root = open_folder(folder).absolute()
    found = [rescore(one) for one in result_folders(root)]
    page = write_page(root)
    if json_:
        print_json([asdict(after) for _, after in found])
        return
    for before, after in found:
        was, now = before.score, after.score
        print(
            f"{after.title}: {now.value:.1f} {now.unit} by {now.metric}, version {now.version}; "
            f"before {was.value:.1f} by version {was.version}"
        )
    print(f"Every answer: {nearby(str(page))}")
