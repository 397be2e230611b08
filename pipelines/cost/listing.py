"""Listing of corpora by their headers: counts, bytes, mean sizes; the basis of a forecast."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from casa_core.errors import ConfigError

LISTINGS = Path(__file__).with_name("listings")
"""Those of the paper's data, by name; ``examples/paper_listing.py`` writes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSize:
    """Pictures of one size.

    Attributes:
        width, height: Pixels.
        share: Share of the source's pictures; a source's shares add up to 1.
    """

    width: int
    height: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFile:
    """A file of a corpus, as its header or footer describes it.

    Attributes:
        name: Path relative to the source's root.
        rows: Number of records.
        bytes: Size on disk.
    """

    name: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceListing:
    """One corpus.

    Attributes:
        name: The source's name.
        files: Its training files.
        images_per_row: Mean pictures per record; for videos, used frames.
        text_tokens_per_row: Mean text tokens per record, template included.
        text_bytes_per_row: Mean length of the text in UTF-8.
        media_bytes_per_row: Mean encoded bytes of a record's pictures or video.
        sizes: Sizes of its pictures or frames.
        video: Whether records are videos; each gets a sequence of its own.
        passes: How often each sample is packed.
        uncertainty: Relative uncertainty of every mean above: 0.3 for ±30 %.
        bytes_uncertainty: Relative uncertainty of the files' bytes; 0 where they were looked up.
        basis: Where the numbers come from, in words.
    """

    name: str
    files: tuple[RawFile, ...]
    images_per_row: float
    text_tokens_per_row: float
    text_bytes_per_row: float
    media_bytes_per_row: float
    sizes: tuple[PictureSize, ...]
    video: bool = False
    passes: float = 1.0
    uncertainty: float = 0.0
    bytes_uncertainty: float = 0.0
    basis: str = ""

    @property
    def rows(self) -> int:
        """Records of all files."""
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A mixture's name, and all its corpora."""

    name: str
    sources: tuple[SourceListing, ...]


def read_listing(path: Path) -> Listing:
    """A listing from JSON, as ``write_listing`` writes it.

    Args:
        path: The file; or the name of one of ``LISTINGS``, where there is no such file.

    Raises:
        ConfigError: For a file that is missing, or not a listing: names the source and the field.
    """
    named = LISTINGS / f"{path}.json"
    path = named if named.is_file() and not path.exists() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        sources = tuple(_source(entry) for entry in values["sources"])
        listing = Listing(name=values["name"], sources=sources)
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no listing {path}.", "", f"Give the path of a JSON file, or one of {_names()}."
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not a listing.",
            f"{type(error).__name__}: {error}.",
            "`examples/paper_listing.py` writes one; each source has the fields of SourceListing.",
        ) from error
    _check(listing, path)
    return listing


def _names() -> str:
    return ", ".join(sorted(file.stem for file in LISTINGS.glob("*.json")))


def write_listing(listing: Listing, path: Path) -> None:
    """Write a listing as JSON."""
    path.write_text(json.dumps(asdict(listing), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _source(values: dict[str, Any]) -> SourceListing:
    fields = dict(values)
    files = tuple(RawFile(**entry) for entry in fields.pop("files"))
    sizes = tuple(PictureSize(**entry) for entry in fields.pop("sizes"))
    return SourceListing(**fields, files=files, sizes=sizes)


def _check(listing: Listing, path: Path) -> None:
    """Check that every source has files, shares that add up to 1, and no negative number.

    Raises:
        ConfigError: Names the first source that does not.
    """
    if not listing.sources:
        raise ConfigError(f"{path} lists no source.", "", "List at least one.")
    for source in listing.sources:
        share = sum(size.share for size in source.sizes)
        numbers = [
            source.images_per_row,
            source.text_tokens_per_row,
            source.text_bytes_per_row,
            source.media_bytes_per_row,
            source.passes,
            source.uncertainty,
            source.bytes_uncertainty,
            *(value for file in source.files for value in (file.rows, file.bytes)),
        ]
        if not source.files:
            why = "It has no file."
        elif source.images_per_row and abs(share - 1) > 1e-6:
            why = f"The shares of its picture sizes add up to {share:.4f}, not to 1."
        elif min(numbers) < 0:
            why = "One of its numbers is negative."
        else:
            continue
        raise ConfigError(f"Source {source.name} of {path} cannot be forecast.", why, "Correct the listing.")
