"""WebDataset shards: tar files whose members form a sample where their names agree up to the first dot."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipelines.data.read.source.base import BadRecord, Span, rest_of
from pipelines.data.read.source.files import HEADERS, Files

RECORDS_PER_SPAN = 64
BYTES_PER_SPAN = 32 << 20
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Group:
    """The members of one sample: ``key``, and each member's name behind the key's dot → its bytes."""

    key: str
    members: dict[str, bytes]


def tar_spans(files: Files, names: Sequence[str]) -> list[Span]:
    """Spans of up to 64 samples or 32 MiB; where a shard is cut or damaged, the rest is one bad record."""
    return [span for found in files.map(lambda name: _shard_spans(files, name), names) for span in found]


def tar_groups(files: Files, span: Span) -> Iterator[Group | BadRecord]:
    """The samples of a span."""
    if span.lost is not None:
        yield BadRecord(
            "truncated_file", f"no whole member and no end of the archive follows byte {span.end}"
        )
        return
    with files.open(span.file) as file:
        file.seek(span.begin)
        data = file.read(span.end - span.begin)
    group: Group | None = None
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            if not member.isreg():
                continue
            key, suffix = key_of(member.name)
            if group is None or group.key != key:
                if group is not None:
                    yield group
                group = Group(key, {})
            content = archive.extractfile(member)
            group.members[suffix] = content.read() if content is not None else b""
    if group is not None:
        yield group


def key_of(name: str) -> tuple[str, str]:
    """A member's key and what follows its first dot, in small letters: a/0001.seg.png → a/0001, seg.png."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.parent / stem), suffix.lower()


def _shard_spans(files: Files, name: str) -> list[Span]:
    with files.open(name, HEADERS) as file:
        starts, whole = _group_starts(file)
    spans: list[Span] = []
    first = 0
    for number in range(1, len(starts)):
        full = number - first == RECORDS_PER_SPAN or starts[number] - starts[first] >= BYTES_PER_SPAN
        if full or number == len(starts) - 1:
            begin, end = starts[first], starts[number]
            spans.append(Span(file=name, start=first, stop=number, bytes=end - begin, begin=begin, end=end))
            first = number
    if not whole:
        spans.append(rest_of(name, row=len(starts) - 1, at=starts[-1], size=files.size(name)))
    return spans


def _group_starts(file: Any) -> tuple[list[int], bool]:
    """Where each sample begins and the last one ends; and whether the archive ends as it should."""
    starts: list[int] = []
    key: str | None = None
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            size = file.size()
            for member in archive:
                beyond = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if beyond > size:
                    return [*starts, end], False
                if member.isreg() and key_of(member.name)[0] != key:
                    key = key_of(member.name)[0]
                    starts.append(end)
                end = beyond
    except tarfile.TarError:
        return [*starts, end], False
    # tarfile takes a damaged header for the end of the archive. The true end is a block of zeros.
    file.seek(end)
    return [*starts, end], file.read(_BLOCK) == bytes(_BLOCK)
