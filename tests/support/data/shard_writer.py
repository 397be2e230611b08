"""Makes a clean artifact of random bytes, shard by shard, in a process of its own, for tests that kill it.

    python -m tests.support.data.shard_writer <folder or URI>

It goes on where an earlier one was killed, as the stages do: a shard whose report is there is not made again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from casa_core.types import Sample
from pipelines.dag import artifact
from pipelines.data.store.rows import CLEAN_SCHEMA
from pipelines.data.store.shard_writing import CARD, write_json, write_shard
from pipelines.storage import s3
from pipelines.storage.atomic import remove_leftovers
from pipelines.storage.transfer import remove_tree
from pipelines.storage.uri import Folder, open_folder
from tests.support.data.rows import row_of
from tests.support.data.store import CHAT, media_bytes, random_media

SHARDS, ROWS = 3, 4
PART_BYTES = 5 << 20
IDENTITY = {"fingerprint": "f", "kind": "clean"}


def rows_of(shard: int) -> Iterator[dict[str, Any]]:
    """Rows of about a megabyte and a half: a shard takes two parts of an upload."""
    for row in range(ROWS):
        number = shard * ROWS + row
        sample = Sample(source="s", sample_id=f"a/b/{number}", parts=CHAT)
        yield row_of(sample, random_media(number, [1_450_000 + number, 50_000]), {"n": number})


def make(folder: Folder) -> dict[str, Any]:
    """Makes the artifact, or what is missing of it; returns its manifest."""
    artifact.begin(folder)
    remove_leftovers(folder)
    listed = []
    for number in range(SHARDS):
        name, report = f"train-{number:05d}.arrow", folder / ".reports" / f"{number}.json"
        if not report.is_file():
            write_shard(folder / name, CLEAN_SCHEMA, rows_of(number), size_of=media_bytes)
            report.parent.mkdir(parents=True, exist_ok=True)
            write_json(report, {"rows": ROWS})
            print(f"wrote {number}", flush=True)
        listed.append({"file": name, "rows": ROWS})
    write_json(folder / CARD, {"splits": {"train": {"rows": SHARDS * ROWS, "shards": listed}}})
    manifest = artifact.commit(folder, IDENTITY, {}, {})
    remove_tree(folder / ".reports")
    return manifest


if __name__ == "__main__":
    s3.PART_BYTES = PART_BYTES
    print("ready", flush=True)
    make(open_folder(sys.argv[1]))
