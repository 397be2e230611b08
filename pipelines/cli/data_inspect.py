"""What ``casa data inspect`` looks at: an artifact by its folder, its URI or its stage's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from casa_core.errors import ConfigError
from pipelines.cli.options import print_json
from pipelines.dag.artifact import read_manifest
from pipelines.data.store.readers import CleanReader, PackReader
from pipelines.data.store.shard_writing import CARD
from pipelines.storage.transfer import local_copy
from pipelines.storage.uri import Folder, open_folder

TOKENIZER = "tokenizer"


def inspect_artifact(
    artifact: str,
    *,
    sequence: int | None,
    row: int | None,
    split: str,
    page: Path | None,
    store: Path,
    as_json: bool,
) -> None:
    """Shows one sequence of a pack artifact, or one row of a clean one.

    Raises:
        ConfigError: For an artifact that cannot be found, or options that do not suit it.
        StoreError: For an artifact that is not whole.
    """
    folder = find(artifact, store)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError(
            f"{folder} is not an artifact.",
            "it has no manifest.json",
            "run its stage, or name another folder",
        )
    kind = manifest["kind"]
    if kind not in ("clean", "pack"):
        raise ConfigError(
            f"{folder} is a {kind} artifact.", "there is no data in it", "name a clean or pack one"
        )
    wrong = "--sequence and --page" if kind == "clean" and (sequence is not None or page) else ""
    wrong = "--row" if kind == "pack" and row is not None else wrong
    if wrong:
        other = "--row" if kind == "clean" else "--sequence"
        raise ConfigError(f"A {kind} artifact does not take {wrong}.", "", f"use {other}")
    if kind == "clean":
        _inspect_row(CleanReader(folder, split), row or 0, as_json)
    else:
        _inspect_sequence(folder, manifest, sequence or 0, page, as_json)


def find(artifact: str, store: Path) -> Folder:
    """The folder of an artifact that a person named.

    Raises:
        ConfigError: For what is neither a folder, nor a stage of the store's latest run.
    """
    folder = open_folder(artifact)
    if folder.is_dir():
        return folder
    from pipelines.cli.session import latest_run

    run = latest_run(store)
    for stage in run.stages:
        if stage["name"] == artifact:
            return open_folder(stage["folder"])
    names = ", ".join(stage["name"] for stage in run.stages if stage["kind"] in ("clean", "pack"))
    raise ConfigError(
        f"There is no artifact {artifact}.",
        f"it is no folder, and the latest run in {run.records.store} has the data stages {names}",
        "give a folder, an s3:// URI or one of these names",
    )


def _inspect_row(reader: CleanReader, number: int, as_json: bool) -> None:
    _check_number("row", number, len(reader))
    row = reader.without_bytes(number)
    sizes = [len(reader.media(number, index)) for index in range(len(row["media"]))]
    if as_json:
        media = [{**entry, "bytes": size} for entry, size in zip(row["media"], sizes, strict=True)]
        print_json({**row, "row": number, "media": media})
        return
    from pipelines.cli.show_sequence import show_row

    show_row(number, len(reader), row, sizes)


def _inspect_sequence(
    folder: Folder, manifest: Mapping[str, Any], number: int, page: Path | None, as_json: bool
) -> None:
    import json

    from pipelines.data.pack.sequence_view import view_sequence

    reader = PackReader(folder)
    _check_number("sequence", number, len(reader))
    budget = json.loads((folder / CARD).read_text(encoding="utf-8"))["budget"]
    view = view_sequence(number, reader[number], budget, _decoder(folder))
    if page is not None:
        from pipelines.cards.sequence import sequence_page

        sources = {picture.source for document in view.documents for picture in document.pictures}
        clean = {source: CleanReader(_clean_folder(folder, manifest, source), "train") for source in sources}
        page.write_text(sequence_page(view, clean), encoding="utf-8")
    if as_json:
        print_json(asdict(view))
        return
    from pipelines.cli.show_sequence import show_sequence

    show_sequence(view)
    if page is not None:
        print(f"\npage: {page}")


def _decoder(folder: Folder) -> Callable[[Sequence[int]], str]:
    from transformers import PreTrainedTokenizerFast

    with local_copy(folder / TOKENIZER) as local:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(local)

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return decode


def _clean_folder(folder: Folder, manifest: Mapping[str, Any], source: str) -> Folder:
    """Where a store keeps the clean artifact that a pack artifact refers to.

    Raises:
        ConfigError: Where it lies no more.
    """
    clean = folder.parent.parent / "clean" / manifest["inputs"][source]
    if not clean.is_dir():
        raise ConfigError(
            f"The clean artifact of {source} is not at {clean}.",
            "a pack artifact refers to the pictures of its store's clean artifacts",
            "leave --page out, or put the artifact back",
        )
    return clean


def _check_number(what: str, number: int, total: int) -> None:
    if number >= total:
        raise ConfigError(f"There is no {what} {number}.", f"the artifact has {total:,}, from 0", "")
