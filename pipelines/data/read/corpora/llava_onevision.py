"""LLaVA-OneVision-1.5-Instruct: parquet files of conversations with at most one picture, by subset folder.

``id: string, image: struct<bytes, path>, conversations: list, data_source: string``. All four encodings of a
turn occur (:mod:`pipelines.data.read.corpora.conversation`); ``image`` is null where the conversation has no
picture. Large subsets are split into folders ``<subset>-part-01-of-10``, which count as one subset here.
"""

from __future__ import annotations

from pipelines.data.read.corpora.base import ParquetReader
from pipelines.data.read.corpora.conversation import pictures, placed, turns_from
from pipelines.data.read.formats.parquet import Row, still_picture
from pipelines.data.read.source.base import Place, Record
from pipelines.data.read.source.subsets import subset_of


class LlavaOneVisionReader(ParquetReader):
    """Reads LLaVA-OneVision-1.5-Instruct's layout.

    A sample's meta holds ``subset``, and ``id`` and ``data_source`` where known.
    """

    needed = ("image", "conversations")
    wanted = ("id", "data_source")

    def parse(self, place: Place, row: Row) -> Record:
        turns = turns_from(row["conversations"])
        picture = still_picture(row["image"])
        media = () if picture is None else (picture,)
        known = {name: row[name] for name in self.wanted if row.get(name) is not None}
        return place.record(
            placed(turns, pictures(len(media))), media, {"subset": subset_of(place.file), **known}
        )
