"""WebDataset shards: tar files whose neighbouring members form a sample where their names agree.

Names agree up to the first dot (``0001.jpg``, ``0001.left.png``, ``0001.json``). Where neighbours agree up to
the last dot, and a text and another member are among them, they are a sample of their own, so that
``v1.2_0001.jpg`` and ``v1.2_0001.txt`` do not become one with ``v1.2_0002.jpg``. Folders are part of a name.
Folders' own entries and hidden members (``._0001.jpg``) do not count. Archives that follow each other in one
file are read as one.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import PurePosixPath
from typing import Any

from pipelines.data.read.source.base import BadRecord, Span, rest_of
from pipelines.data.read.source.files import HEADERS, Files

RECORDS_PER_SPAN = 64
BYTES_PER_SPAN = 32 << 20
TEXT_SUFFIXES = ("json", "txt")
_BLOCK = 512
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Group:
    """The members of one sample.

    Attributes:
        key: What their names agree in.
        members: Name → bytes, in order.
        links: Name → what it links to, for members that have no bytes of their own.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


def tar_spans(files: Files, names: Sequence[str]) -> list[Span]:
    """Spans of up to 64 samples or 32 MiB; where a shard is cut or damaged, the rest is one bad record."""
    return [span for found in files.map(lambda name: _shard_spans(files, name), names) for span in found]


def tar_groups(files: Files, span: Span) -> Iterator[Group | BadRecord]:
    """The samples of a span; ``bad_record`` for one that has a member twice."""
    if span.lost is not None:
        yield BadRecord(
            "truncated_file", f"no whole member and no end of the archive follows byte {span.end}"
        )
        return
    with files.open(span.file) as file:
        file.seek(span.begin)
        data = file.read(span.end - span.begin)
    # The plan has walked these bytes: zeros among them are the end of an archive that another follows.
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", ignore_zeros=True) as archive:
        members = [member for member in archive if _counts(member)]
        bounds = [*group_starts([member.name for member in members]), len(members)]
        for start, stop in pairwise(bounds):
            yield _group(archive, members[start:stop])


def group_starts(names: Sequence[str]) -> list[int]:
    """Which members begin a sample. It depends on each member and its neighbours alone."""
    starts: list[int] = []
    before: tuple[str, bool] | None = None
    at = 0
    for (key, stem), run in groupby(names, key=lambda name: (_key(name), _stem(name))):
        own = list(run)
        texts = sum(_suffix(name) in TEXT_SUFFIXES for name in own)
        whole = stem != key and 0 < texts < len(own)
        if before is None or before[0] != key or before[1] or whole:
            starts.append(at)
        before = (key, whole)
        at += len(own)
    return starts


def _group(archive: tarfile.TarFile, members: Sequence[tarfile.TarInfo]) -> Group | BadRecord:
    stems = {_stem(member.name) for member in members}
    group = Group(stems.pop() if len(stems) == 1 else _key(members[0].name))
    seen: set[str] = set()
    for member in members:
        name = str(PurePosixPath(member.name))
        if name.lower() in seen:
            detail = f"the sample {group.key} has the member {name} twice: a copy, or two samples of one key"
            return BadRecord("bad_record", detail)
        seen.add(name.lower())
        content = archive.extractfile(member) if member.isreg() else None
        if content is None:
            group.links[name] = member.linkname
        else:
            group.members[name] = content.read()
    return group


def _counts(member: tarfile.TarInfo) -> bool:
    """Whether a member is part of a sample: a file, or a link in the place of one, that is not hidden."""
    path = PurePosixPath(member.name)
    hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in path.parts)
    return (member.isreg() or member.issym() or member.islnk()) and not hidden


def _key(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.parent / path.name.partition(".")[0])


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    head, dot, _ = path.name.rpartition(".")
    return str(path.parent / (head if dot else path.name))


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix[1:].lower()


def _shard_spans(files: Files, name: str) -> list[Span]:
    with files.open(name, HEADERS) as file:
        starts, whole = _sample_offsets(file)
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


def _sample_offsets(file: Any) -> tuple[list[int], bool]:
    """Where each sample begins and the last one ends; and whether the archives end as they should."""
    names: list[str] = []
    begins: list[int] = []
    end, whole, size = 0, True, file.size()
    at: int | None = 0
    while at is not None and whole:
        file.seek(at)
        end, whole = _walk(file, size, names, begins, at)
        at = _next_archive(file, size, end) if whole else None
    return [*(begins[number] for number in group_starts(names)), end], whole


def _walk(file: Any, size: int, names: list[str], begins: list[int], end: int) -> tuple[int, bool]:
    """Adds one archive's members; returns where it ends, and whether it does as it should."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if archive.offset > size:
                    return end, False
                if _counts(member):
                    names.append(member.name)
                    begins.append(end)
                end = archive.offset
    except tarfile.TarError:
        return end, False
    # tarfile takes a damaged header for the end of the archive. The true end is a block of zeros.
    file.seek(end)
    return end, file.read(_BLOCK) == bytes(_BLOCK)


def _next_archive(file: Any, size: int, end: int) -> int | None:
    """Where another archive follows the zeros that end one; None at the end of the file."""
    file.seek(end)
    while end < size:
        chunk = file.read(min(_CHUNK, size - end))
        if not chunk:
            return None
        if rest := chunk.lstrip(b"\0"):
            return end + (len(chunk) - len(rest)) // _BLOCK * _BLOCK
        end += len(chunk)
    return None
