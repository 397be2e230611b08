"""``casa data card``: the data card of a clean or pack artifact, as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.shared.options import DEFAULT_STORE, StoreOption


def card(
    artifact: Annotated[
        str,
        typer.Argument(
            help="A stage's name, or the folder or s3:// URI of a clean or pack artifact.",
            metavar="STAGE|FOLDER",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Where the page goes; STAGE.card.html by default.", dir_okay=False)
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write an artifact's data card: counts, histograms, fill, shares, filters, quarantine, sample pictures.

    The page is one file and needs no network. It is drawn from the artifact, and is no part of it.

    Examples:

      casa data card pack

      casa data card clean-vqa --output vqa.html

      casa data card s3://bucket/runs/pack/9f2c…
    """
    from pipelines.cards.data import card_page
    from pipelines.cli.shared.artifacts import clean_folders, find_data_artifact
    from pipelines.storage.atomic import write_whole

    folder, manifest = find_data_artifact(artifact, store)
    clean = clean_folders(folder, manifest) if manifest["kind"] == "pack" else {}
    output = output or Path(f"{manifest.get('provenance', {}).get('stage', manifest['kind'])}.card.html")
    write_whole(output, card_page(folder, clean), parents=True)
    print(f"card: {output}")
