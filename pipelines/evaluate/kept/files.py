"""The files of a result's folder, see :mod:`pipelines.evaluate.results`."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.uri import Folder

RESULT, SAMPLES = "result.json", "samples.parquet"


def read_samples(folder: Folder) -> list[dict[str, Any]]:
    """The samples of a result, in order."""
    return pq.read_table(pa.BufferReader((folder / SAMPLES).read_bytes())).to_pylist()
