"""Readers of published corpus layouts, by the name a recipe uses."""

from __future__ import annotations

from typing import Any

from casa_core.errors import ConfigError
from pipelines.data.files import Files
from pipelines.data.readers.base import RawMedia, Reader, Record, Span
from pipelines.data.readers.finevision import FineVisionReader
from pipelines.data.readers.live_whisperx import LiveWhisperXReader

__all__ = ["READERS", "RawMedia", "Reader", "Record", "Span", "open_reader"]

READERS: dict[str, type[FineVisionReader] | type[LiveWhisperXReader]] = {
    "finevision": FineVisionReader,
    "live_whisperx": LiveWhisperXReader,
}


def open_reader(name: str, root: str, source: str, options: dict[str, Any]) -> Reader:
    """The reader ``name`` for the files under ``root``.

    Args:
        name: As in a recipe's ``reader``.
        root: Local folder or pyarrow filesystem URI.
        source: The data source's name in the recipe.
        options: The reader's own settings, for example ``fps``.

    Raises:
        ConfigError: For an unknown reader, or a setting it does not have.
    """
    if name not in READERS:
        raise ConfigError(
            f"There is no reader named {name!r}.", "", f"Use one of: {', '.join(sorted(READERS))}."
        )
    try:
        return READERS[name](files=Files(root), source=source, **options)
    except TypeError as error:
        raise ConfigError(
            f"The reader {name!r} of source {source!r} was given a setting that it does not have.",
            str(error),
            "Remove the setting, or choose another reader.",
        ) from error
