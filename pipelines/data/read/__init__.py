"""Readers of published corpus layouts, by the name a recipe uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from casa_core.errors import ConfigError
from pipelines.data.read.corpora.finevision import FineVisionReader
from pipelines.data.read.corpora.image_text import ImageTextReader
from pipelines.data.read.corpora.live_whisperx import LiveWhisperXReader
from pipelines.data.read.corpora.llava_midtraining import LlavaMidtrainingReader
from pipelines.data.read.corpora.llava_onevision import LlavaOneVisionReader
from pipelines.data.read.corpora.llava_video import LlavaVideoReader
from pipelines.data.read.source.base import RawMedia, Reader, Record, Span
from pipelines.data.read.source.files import Files
from pipelines.data.read.source.reasons import REASONS

__all__ = ["READERS", "REASONS", "RawMedia", "Reader", "Record", "Span", "open_reader"]

READERS: dict[str, Callable[..., Reader]] = {
    "finevision": FineVisionReader,
    "image_text": ImageTextReader,
    "live_whisperx": LiveWhisperXReader,
    "llava_midtraining": LlavaMidtrainingReader,
    "llava_onevision": LlavaOneVisionReader,
    "llava_video": LlavaVideoReader,
}


def open_reader(name: str, root: str, source: str, options: dict[str, Any]) -> Reader:
    """The reader ``name`` for the files under ``root``.

    Args:
        name: As in a recipe's ``reader``.
        root: Local folder, or a URI that :mod:`pipelines.storage.uri` reads.
        source: The data source's name in the recipe.
        options: The reader's own settings, for example ``fps``; lists are taken as tuples.

    Raises:
        ConfigError: For an unknown reader, or a setting it does not have.
    """
    if name not in READERS:
        raise ConfigError(
            f"There is no reader named {name!r}.", "", f"Use one of: {', '.join(sorted(READERS))}."
        )
    frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    try:
        return READERS[name](files=Files(root), source=source, **frozen)
    except TypeError as error:
        raise ConfigError(
            f"The reader {name!r} of source {source!r} was given a setting that it does not have.",
            str(error),
            "Remove the setting, or choose another reader.",
        ) from error
