"""Makes a corpus's listing from its headers and a bounded sample of its records.

Records are counted by footers, line ends and archives' headers, and files measured by their listing. Pictures
and videos that records name lie beside these files: their bytes follow from the sample.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import sqrt
from statistics import fmean, stdev

from casa_core.errors import DataError, MediaError
from casa_core.media.decode import VideoFrames, image_dimensions
from casa_core.types import Image, Text
from pipelines.cost.listing import PictureSize, RawFile, SourceListing
from pipelines.data.clean.losses import losses_of
from pipelines.data.pack.encode import SPLIT
from pipelines.data.read import Reader, Record
from pipelines.data.read.source.base import Span
from pipelines.data.read.source.splits import no_training_records
from pipelines.data.store.quarantine import Rejected
from pipelines.text_format import byte_size

SPANS, RECORDS = 8, 32
"""Spans of a corpus that are sampled, and records read per span."""
TWO_SIDED_95 = 1.96
_LONGEST = 300
_HOLD_MEDIA = (".parquet", ".tar", ".tar.gz", ".tgz")


@dataclass(slots=True)
class _Sampled:
    """Sizes of the sampled records, one entry per record."""

    images: list[float] = field(default_factory=list)
    text_tokens: list[float] = field(default_factory=list)
    text_bytes: list[float] = field(default_factory=list)
    media_bytes: list[float] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    videos: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    example: str = ""

    @property
    def unusable(self) -> int:
        """How many records had to be left out."""
        return self.reasons.total()

    def leave_out(self, reason: str, example: str) -> None:
        """A record that the clean or the pack stage will quarantine."""
        self.reasons[reason] += 1
        self.example = self.example or f"{reason} in {example}"

    def why(self) -> str:
        """`` (bad_json 3, bad_path 1, for example bad_json in a.jsonl, record 0: …)``; empty for none."""
        counts = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common(3))
        return f" ({counts}, for example {self.example[:_LONGEST]})" if counts else ""


def sample_source(
    reader: Reader,
    count_tokens: Callable[[str], float],
    *,
    tokens_of: Callable[[int, int], object] = lambda height, width: None,
    passes: float = 1.0,
    text_doubt: float = 0.0,
) -> SourceListing:
    """Count a source's records from its headers, and measure a sample of them.

    Args:
        reader: The source's reader. The sample is the first records of spans that are evenly spaced over the
            train split; only the headers of pictures are read.
        count_tokens: Number of tokens of a text, or an estimate of it.
        tokens_of: Raises ``MediaError`` for the height and width of a picture that cannot be packed.
        passes: How often each sample is packed.
        text_doubt: Relative uncertainty of ``count_tokens`` itself.

    Raises:
        ConfigError: Where the source has no records to train on.
        DataError: From the reader, or where none of the sampled records can be used.
    """
    spans = reader.spans(SPLIT)
    chosen = [spans[index * len(spans) // SPANS] for index in range(SPANS)] if len(spans) > SPANS else spans
    seen = _Sampled()
    for span in chosen:
        for record in islice(reader.read(span), RECORDS):
            _measure(seen, record, count_tokens, tokens_of)
    measured = len(seen.images)
    _check(reader, spans, seen)
    usable = measured / max(measured + seen.unusable, 1)
    total = sum(seen.sizes.values())
    uncertainty = max(map(_relative_error, (seen.images, seen.text_tokens, seen.media_bytes))) + text_doubt
    files, beside = _files(spans, reader.inventory().sizes, _mean(seen.media_bytes))
    size = sum(file.bytes for file in files)
    where = f"records and {byte_size(size - beside)} from headers"
    lost = losses_of(spans, reader.inventory().sizes.__getitem__)
    if lost.files:
        where += (
            f", less about {lost.records:,} in {len(lost.files)} files that cannot be read ({lost.files[0]})"
        )
    if beside:
        where += f", {byte_size(beside)} of pictures and videos beside them from the sample"
    return SourceListing(
        name=reader.source,
        files=files,
        images_per_row=_mean(seen.images) * usable,
        text_tokens_per_row=_mean(seen.text_tokens) * usable,
        text_bytes_per_row=_mean(seen.text_bytes) * usable,
        media_bytes_per_row=_mean(seen.media_bytes) * usable,
        sizes=tuple(
            PictureSize(width=width, height=height, share=count / total)
            for (width, height), count in sorted(seen.sizes.items())
        ),
        video=seen.videos > measured / 2,
        passes=passes,
        uncertainty=uncertainty,
        bytes_uncertainty=_relative_error(seen.media_bytes) * beside / max(size, 1),
        basis=(
            f"{where}; means of {measured} records in {len(chosen)} of {len(spans)} "
            f"places, {seen.unusable} unusable{seen.why()}; within {uncertainty:.0%} (95 %)"
        ),
    )


def _check(reader: Reader, spans: Sequence[Span], seen: _Sampled) -> None:
    """Raises as :func:`sample_source`."""
    if not spans:
        raise no_training_records(reader.source, reader.inventory())
    if not seen.images:
        raise DataError(
            f"None of the {seen.unusable} records sampled from source {reader.source!r} can be used.",
            f"They would be set aside{seen.why()}.",
            "Correct the records or the source's reader; docs/data.md has the layouts and the reasons.",
        )


def _measure(
    seen: _Sampled,
    record: Record | Rejected,
    count_tokens: Callable[[str], float],
    tokens_of: Callable[[int, int], object],
) -> None:
    place = f"{record.file}, record {record.row}"
    if isinstance(record, Rejected):
        seen.leave_out(record.reason, f"{place}: {record.detail}")
        return
    parts = record.sample.parts
    pictures = [part.media for part in parts if isinstance(part, Image)]
    try:
        sizes = {n: _size(record, n) for n in range(len(record.media))}
        for width, height in sizes.values():
            tokens_of(height, width)
    except MediaError as error:
        seen.leave_out(error.reason, f"{place}: {error.what}")
        return
    seen.sizes.update(sizes[number] for number in pictures)
    seen.videos += any(media.kind == "video" for media in record.media)
    texts = [part.text for part in parts if isinstance(part, Text)]
    seen.images.append(len(pictures))
    seen.text_tokens.append(sum(map(count_tokens, texts)))
    seen.text_bytes.append(sum(len(text.encode()) for text in texts))
    seen.media_bytes.append(sum(len(media.data) for media in record.media))


def _size(record: Record, number: int) -> tuple[int, int]:
    """(width, height) from a header."""
    media = record.media[number]
    if media.kind == "image":
        height, width = image_dimensions(media.data)
        return width, height
    with VideoFrames(media.data) as video:
        return video.width, video.height


def _files(
    spans: Sequence[Span], sizes: Mapping[str, int], media_bytes: float
) -> tuple[tuple[RawFile, ...], int]:
    """The files with their bytes, those of media beside them included; and the latter's sum.

    Media lie beside a file of text that is smaller than they are: inside it, as base64, they would take a
    third more than by themselves.
    """
    rows: dict[str, int] = defaultdict(int)
    for span in spans:
        rows[span.file] += span.records
    found: list[RawFile] = []
    beside = 0
    for name in sorted(rows):
        media = round(rows[name] * media_bytes)
        outside = media if not name.lower().endswith(_HOLD_MEDIA) and media > 0.75 * sizes[name] else 0
        found.append(RawFile(name=name, rows=rows[name], bytes=sizes[name] + outside))
        beside += outside
    return tuple(found), beside


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _relative_error(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean, relative to it; 1 for fewer than two values."""
    if len(values) < 2:
        return 1.0
    mean = fmean(values)
    return TWO_SIDED_95 * stdev(values) / sqrt(len(values)) / mean if mean else 0.0
