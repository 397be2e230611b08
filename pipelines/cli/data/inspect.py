"""``casa data inspect``: one packed sequence, or one row of a clean artifact."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casa_core.errors import ConfigError
from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption
from pipelines.cli.show.format import print_json

if TYPE_CHECKING:
    from pipelines.data.store.readers import CleanReader
    from pipelines.storage.uri import Folder

TOKENIZER = "tokenizer"


def inspect(
    artifact: Annotated[
        str, typer.Argument(help="Folder or s3:// URI of a clean or pack artifact, or a stage's name.")
    ],
    sequence: Annotated[int | None, typer.Option(help="Which packed sequence, from 0.", min=0)] = None,
    row: Annotated[int | None, typer.Option(help="Which row of a clean artifact, from 0.", min=0)] = None,
    split: Annotated[str, typer.Option(help="Split of a clean artifact: train or test.")] = "train",
    page: Annotated[Path | None, typer.Option(help="Write the sequence with its pictures as HTML.")] = None,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Show a packed sequence, or a row of a clean artifact.

    A sequence with its documents, their attention windows, trained text underlined and masked text dim,
    pictures with their sizes and tokens, and how full both budgets are.

    Examples:

      casa data inspect pack --sequence 12

      casa data inspect pack --sequence 12 --page sequence.html

      casa data inspect clean-vqa --row 80

      casa data inspect s3://bucket/runs/pack/9f2c… --json
    """
    from pipelines.cli.shared.artifacts import find_data_artifact
    from pipelines.data.store.readers import CleanReader

    folder, manifest = find_data_artifact(artifact, store)
    is_clean = manifest["kind"] == "clean"
    wrong = "`--sequence` and `--page`" if is_clean and (sequence is not None or page) else ""
    wrong = "`--row`" if not is_clean and row is not None else wrong
    if wrong:
        other = "`--row`" if is_clean else "`--sequence`"
        raise ConfigError(f"A {manifest['kind']} artifact does not take {wrong}.", "", f"Use {other}.")
    if is_clean:
        _inspect_row(CleanReader(folder, split), row or 0, as_json=json_)
    else:
        _inspect_sequence(folder, manifest, sequence or 0, page, as_json=json_)


def _inspect_row(reader: CleanReader, number: int, *, as_json: bool) -> None:
    _check_number("row", number, len(reader))
    row = reader.without_bytes(number)
    sizes = [len(reader.media(number, index)) for index in range(len(row["media"]))]
    if as_json:
        media = [{**entry, "bytes": size} for entry, size in zip(row["media"], sizes, strict=True)]
        print_json({**row, "row": number, "media": media})
        return
    from pipelines.cli.show.sequence import show_row

    show_row(number, len(reader), row, sizes)


def _inspect_sequence(
    folder: Folder, manifest: Mapping[str, Any], number: int, page: Path | None, *, as_json: bool
) -> None:
    from pipelines.cli.shared.artifacts import clean_folders
    from pipelines.cli.show.sequence import show_sequence
    from pipelines.data.pack.sequence_view import view_sequence
    from pipelines.data.store.readers import CleanReader, PackReader
    from pipelines.data.store.shard_writing import CARD
    from pipelines.storage.atomic import write_whole

    reader = PackReader(folder)
    _check_number("sequence", number, len(reader))
    budget = json.loads((folder / CARD).read_text(encoding="utf-8"))["budget"]
    view = view_sequence(number, reader[number], budget, _decoder(folder))
    if page is not None:
        from pipelines.cards.sequence import sequence_page

        clean = {name: CleanReader(own, "train") for name, own in clean_folders(folder, manifest).items()}
        write_whole(page, sequence_page(view, clean), parents=True)
    if as_json:
        print_json(asdict(view))
        return
    show_sequence(view)
    if page is not None:
        print(f"\npage: {page}")


def _decoder(folder: Folder) -> Callable[[Sequence[int]], str]:
    from transformers import PreTrainedTokenizerFast

    from pipelines.storage.transfer import local_copy

    with local_copy(folder / TOKENIZER) as local:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(local)

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return decode


def _check_number(what: str, number: int, total: int) -> None:
    if number >= total:
        raise ConfigError(f"There is no {what} {number}.", f"The artifact has {total:,}, counted from 0.", "")
