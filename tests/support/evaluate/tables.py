"""A small benchmark of one's own, in files: a parquet table of drawn pictures and its YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.core.engine import png

YAML = """name: {name}
title: Drawn
data: {name}.parquet
picture: image
answers: answer
prompt: "{{question}}"
category: kind
metric: exact_match
"""


def drawn_rows(count: int) -> list[dict[str, Any]]:
    """Questions about drawn pictures, in two categories."""
    return [
        {
            "image": {"bytes": png(at, 16 + 8 * (at % 3), 24), "path": None},
            "question": " ".join(("what", "colour", "is", "shape", "the")[: 2 + at % 4]),
            "answer": ("red", "green", "blue")[at % 3],
            "kind": ("one", "two")[at % 2],
        }
        for at in range(count)
    ]


def write_own(folder: Path, rows: list[dict[str, Any]], name: str = "drawn") -> Path:
    """Write the table and the YAML file; the latter's path."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=7)
    file = folder / f"{name}.yaml"
    file.write_text(YAML.format(name=name))
    return file
