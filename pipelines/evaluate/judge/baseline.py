"""Commentaries to be compared with: another model's, from a file or from an evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from casa_core.errors import DataError, cause
from pipelines.evaluate.kept.files import RESULT, read_samples
from pipelines.storage.uri import Folder


@dataclass(frozen=True)
class Baseline:
    """Commentaries by question.

    Attributes:
        name: For people.
        texts: Question's id → commentary.
    """

    name: str
    texts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Changes with a commentary."""
        return hashlib.sha256(json.dumps(self.texts, sort_keys=True).encode()).hexdigest()


def read_baseline(place: Folder) -> Baseline:
    """A baseline's commentaries.

    Args:
        place: A JSONL file in LiveCC's layout, ``{video_id, event_id, pred}``, or a benchmark's folder below
            an output of ``casa evaluate``.

    Raises:
        DataError: Where it is neither, or empty.
    """
    try:
        if (place / RESULT).is_file():
            texts = {row["question_id"]: row["answer"] for row in read_samples(place) if row["answer"]}
        else:
            lines = (json.loads(line) for line in place.read_text().splitlines() if line.strip())
            texts = {f"{line['video_id']}_{line['event_id']}": str(line["pred"]) for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"The baseline {place} cannot be read.",
            f"{cause(error)}.",
            "Name a JSONL file of {video_id, event_id, pred}, or a benchmark's folder of an evaluation.",
        ) from error
    if not texts:
        raise DataError(f"The baseline {place} holds no commentary.", "", "Name another file.")
    return Baseline(place.stem, texts)
