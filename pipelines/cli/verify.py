"""``casa verify``: do an artifact's files have the digests of its manifest?"""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption
from pipelines.cli.show.format import print_json


def verify(
    artifact: Annotated[
        str | None,
        typer.Argument(
            help="A stage's name, a folder or an s3:// URI; all artifacts of the latest run if not given.",
            metavar="[STAGE|FOLDER]",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Compare every file of an artifact with its manifest: size, SHA-256, nothing missing or added.

    One line per artifact. Ends with 1 if one has a fault: remove its folder, and the next run makes it again.

    Examples:

      casa verify                      all that the latest run made

      casa verify pack                 one stage's artifact

      casa verify s3://bucket/runs/pack/9f2c… --json
    """
    from pipelines.cli.shared.artifacts import find_artifact
    from pipelines.cli.shared.run_handle import latest_run
    from pipelines.dag.artifact import read_manifest
    from pipelines.dag.artifact import verify as faults_of
    from pipelines.storage.uri import open_folder

    if artifact is None:
        folders = {own["name"]: open_folder(own["folder"]) for own in latest_run(store).stages}
        folders = {name: folder for name, folder in folders.items() if read_manifest(folder) is not None}
    else:
        folders = {artifact: find_artifact(artifact, store)}
    found = {name: faults_of(folder) for name, folder in folders.items()}
    if json_:
        print_json(
            [
                {"artifact": name, "folder": str(folders[name]), "faults": {f.file: f.detail for f in faults}}
                for name, faults in found.items()
            ]
        )
    else:
        if not found:
            print("Nothing to verify: the latest run has made no artifact yet.")
        for name, faults in found.items():
            print(f"{name}: {' '.join(fault.detail for fault in faults) or 'intact'}")
    if any(found.values()):
        raise typer.Exit(1)
