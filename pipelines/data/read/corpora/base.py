"""Bases of the corpus readers: the corpus's files, the choice of subsets, parquet files by row group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from pipelines.data.read.formats.parquet import Row, parquet_rows, parquet_spans
from pipelines.data.read.source.base import Place, Record, Span, collect
from pipelines.data.read.source.files import Files
from pipelines.data.read.source.splits import Inventory, take_inventory
from pipelines.data.read.source.subsets import choose_subsets
from pipelines.data.store.quarantine import Rejected


@dataclass(frozen=True, kw_only=True)
class CorpusReader:
    """Fields of every reader.

    Attributes:
        files: The corpus's folder.
        source: The data source's name in the recipe.
        splits: As in :func:`take_inventory`, which also has the rule for files it does not name.
        suffixes: Suffixes of files that records lie in, in small letters.
        media: Suffixes of files that records may name.
    """

    files: Files
    source: str
    splits: Mapping[str, Sequence[str]] | None = None

    suffixes: ClassVar[tuple[str, ...]] = ()
    media: ClassVar[tuple[str, ...]] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def inventory(self) -> Inventory:
        """Which files each split has, and which are not read; taken once a process."""
        return self._inventory

    @cached_property
    def _inventory(self) -> Inventory:
        return take_inventory(
            self.files,
            suffixes=self.suffixes,
            media=self.media,
            splits=self.splits,
            wanted=self.chosen,
            is_read=self.is_read,
        )

    def is_read(self, name: str) -> bool:
        """Whether a file with one of ``suffixes`` holds records of this layout."""
        return True

    def chosen(self, names: Sequence[str]) -> list[str]:
        """The files that the recipe asks for, out of those of a split."""
        return list(names)

    def names(self, split: str) -> list[str]:
        """The files of a split, in order."""
        return list(self.inventory().splits.get(split, ()))


@dataclass(frozen=True, kw_only=True)
class SubsetReader(CorpusReader):
    """Fields of readers of corpora with one folder per subset.

    Attributes:
        subsets: Names or patterns of the subsets to read, without ``-part-…``; None for all.
        exclude_subsets: Subsets to leave out.
    """

    subsets: tuple[str, ...] | None = None
    exclude_subsets: tuple[str, ...] = ()

    def chosen(self, names: Sequence[str]) -> list[str]:
        """The files in the subsets asked for."""
        return choose_subsets(self.source, names, self.subsets, self.exclude_subsets)


@dataclass(frozen=True, kw_only=True)
class ParquetReader(SubsetReader, ABC):
    """Reads parquet files: one span per row group, one record per row.

    Where rows have an ``id``, it begins the sample's id; file and row follow.

    Attributes:
        needed: Columns without which no row can be used.
        wanted: Columns to be read where the file has them.
    """

    suffixes = (".parquet",)

    needed: ClassVar[tuple[str, ...]]
    wanted: ClassVar[tuple[str, ...]]

    def spans(self, split: str) -> list[Span]:
        """One span per row group, from the footers; a file without a readable footer is one bad record."""
        return parquet_spans(self.files, self.names(split))

    def read(self, span: Span) -> Iterator[Record | Rejected]:
        """The rows of one row group; where its pages are broken, its rows from there on are rejected."""
        rows = parquet_rows(self.files, span, needed=self.needed, wanted=self.wanted)
        return collect(self.source, span, rows, self.parse, own_id=lambda row: row.get("id"))

    @abstractmethod
    def parse(self, place: Place, row: Row) -> Record:
        """The record of a row; raises ``BadRecord`` for one that breaks the layout."""
