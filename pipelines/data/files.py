"""Raw files by name under one root: a local folder or a pyarrow filesystem URI (``s3://bucket/prefix``)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pyarrow import fs

from casa_core.errors import ConfigError, DataError


@dataclass(frozen=True)
class Files:
    """The files under ``root``; picklable, and opened anew in each process.

    Attributes:
        root: A folder, or a URI that pyarrow knows (``s3://``, ``gs://``, ``file://``).
    """

    root: str

    @cached_property
    def _location(self) -> tuple[fs.FileSystem, str]:
        try:
            if "://" in self.root:
                filesystem, path = fs.FileSystem.from_uri(self.root)
            else:
                filesystem, path = fs.LocalFileSystem(), str(Path(self.root).expanduser().resolve())
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"{self.root!r} is not a folder this project can read.",
                str(error),
                "Use a local folder, s3://bucket/prefix or gs://bucket/prefix.",
            ) from error
        return filesystem, path.rstrip("/")

    def names(self, suffix: str) -> list[str]:
        """Names, relative to the root and sorted, of all files below it that end with ``suffix``.

        Raises:
            DataError: Where the root does not exist.
        """
        filesystem, path = self._location
        try:
            infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        except OSError as error:
            raise DataError(
                f"The folder {self.root} cannot be listed.", str(error), "Check the source's path."
            ) from error
        found = [info.path for info in infos if info.type == fs.FileType.File and info.path.endswith(suffix)]
        return sorted(name[len(path) :].lstrip("/") for name in found)

    def open(self, name: str) -> Any:
        """A seekable ``pyarrow.NativeFile``; raises FileNotFoundError."""
        filesystem, path = self._location
        return filesystem.open_input_file(f"{path}/{name}")

    def read(self, name: str) -> bytes:
        """All bytes of a file; raises FileNotFoundError."""
        with self.open(name) as file:
            return file.read()

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        filesystem, path = self._location
        return filesystem.get_file_info(f"{path}/{name}").type == fs.FileType.File
