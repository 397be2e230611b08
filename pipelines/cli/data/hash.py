"""``casa data hash``: hashes of an evaluation set's pictures, for decontamination."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.shared.options import JsonOption
from pipelines.cli.show.format import print_json


def hash_pictures(
    pictures: Annotated[
        str,
        typer.Argument(
            help="Folder or URI of picture files, subfolders too; with --reader, of a corpus.",
            metavar="PICTURES",
        ),
    ],
    output: Annotated[Path, typer.Argument(help="The list to write, parquet.", dir_okay=False)],
    reader: Annotated[
        str | None, typer.Option(help="Layout of the corpus, as a recipe's `reader` names it.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Hash an evaluation set's pictures into a list, so that packing can leave them out of training.

    A recipe names lists in data.filters.decontamination.hashes: samples are removed that show one of the
    pictures, byte for byte or nearly (by a perceptual hash).

    Examples:

      casa data hash eval/images eval_hashes.parquet

      casa data hash s3://bucket/FineVision/ai2d eval_hashes.parquet --reader finevision

      casa prepare my.yaml --set 'data.filters.decontamination.hashes=[eval_hashes.parquet]'
    """
    from pipelines.data.filter.hash_lists import write_hash_list

    output.parent.mkdir(parents=True, exist_ok=True)
    count = write_hash_list(pictures, output, reader=reader)
    if json_:
        print_json({"pictures": count, "list": str(output)})
    else:
        print(f"{output}: {count:,} pictures")
