"""LLaVA-OneVision-1.5-Instruct: parquet files of conversations with at most one picture, by subset folder.

``id: string, image: struct<bytes, path>, conversations: list, data_source: string``. All four encodings of a
turn occur (:mod:`pipelines.data.read.corpora.conversation`); ``image`` is null where the conversation has no
picture. Large subsets are split into folders ``<subset>-part-01-of-10``, which count as one subset here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.data.read.corpora.conversation import arrange, pictures, turns_from
from pipelines.data.read.formats.parquet import Row, parquet_rows, parquet_spans, still_picture
from pipelines.data.read.source.base import Place, Record, Span, collect, split_files
from pipelines.data.read.source.files import Files
from pipelines.data.read.source.subsets import choose_subsets, subset_of
from pipelines.data.store.quarantine import Rejected


@dataclass(frozen=True, kw_only=True)
class LlavaOneVisionReader:
    """Reads LLaVA-OneVision-1.5-Instruct's layout; one span a row group.

    A sample's id is the record's own, followed by file and row; its meta holds ``subset``, and ``id`` and
    ``data_source`` where known.

    Attributes:
        files: The folder with the subsets' folders.
        source: The data source's name in the recipe.
        subsets: Names or patterns of the subsets to read, without ``-part-…``; None for all.
        exclude_subsets: Subsets to leave out.
    """

    files: Files
    source: str
    subsets: tuple[str, ...] | None = None
    exclude_subsets: tuple[str, ...] = ()

    def spans(self, split: str) -> list[Span]:
        """One span a row group, from the footers; a file without a readable footer is one bad record."""
        names = split_files(self.files, split, ".parquet")
        chosen = choose_subsets(self.source, names, self.subsets, self.exclude_subsets)
        return parquet_spans(self.files, chosen)

    def read(self, span: Span) -> Iterator[Record | Rejected]:
        """The rows of one row group; where its pages are broken, its rows from there on are rejected."""
        rows = parquet_rows(self.files, span, needed=("image", "conversations"), wanted=("id", "data_source"))
        return collect(self.source, span, rows, self._parse, own_id=lambda row: row.get("id"))

    def _parse(self, place: Place, row: Row) -> Record:
        turns = turns_from(row["conversations"])
        picture = still_picture(row["image"])
        media = () if picture is None else (picture,)
        known = {name: row[name] for name in ("id", "data_source") if row.get(name) is not None}
        return place.record(
            arrange(turns, pictures(len(media))), media, {"subset": subset_of(place.file), **known}
        )
