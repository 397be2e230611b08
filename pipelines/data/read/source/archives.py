"""Files inside a corpus's zip and tar archives, found by name and read without unpacking.

A member stands where unpacking would put it: in the archive's folder, or in one there of the archive's name;
failing that, under its own name where one archive alone has it. Zip archives are also listed, so that records
inside them are read (``photos.zip/train.jsonl``). An archive's index is its central directory (zip) or its
headers (tar), read once a process. Packed tar archives have no index: a member could only be reached through
all before it.
"""

from __future__ import annotations

import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from casa_core.errors import DataError
from pipelines.data.read.source.remote_file import Section
from pipelines.storage.raw_listing import is_skipped

INDEXED = (".zip", ".tar")
WITHOUT_INDEX = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LOCAL_HEADER = 30
_STORED, _DEFLATED = 0, 8


class ArchiveError(OSError):
    """A member that cannot be had; the message names its archive relative to the corpus."""


class NotUnpacked(ArchiveError, FileNotFoundError):
    """A file that is not there, while the corpus has archives in which files cannot be found."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Attributes:
        archive: The archive's name.
        at: Where its bytes begin (tar), or its header (zip).
        stored: Bytes that it takes there.
        size: Bytes of the file.
        method: How a zip packs it; 0 for not at all.
        crc: Its checksum; None where the archive has none.
    """

    archive: str
    at: int
    stored: int
    size: int
    method: int = _STORED
    crc: int | None = None


Index = dict[str, Member]


def index_of(archive: str, file: Any) -> Index:
    """Name inside the archive → member; links, hidden names and those that lead out of it are left out.

    Raises:
        DataError: For a zip that is none, is cut or is one of several parts.
    """
    found = _zip_index(archive, file) if archive.lower().endswith(".zip") else _tar_index(archive, file)
    return {name: member for name, member in found.items() if name and _counts(name)}


def _counts(name: str) -> bool:
    parts = name.split("/")
    return ".." not in parts and not any(map(is_skipped, parts))


def _zip_index(archive: str, file: Any) -> Index:
    try:
        infos = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error) as error:
        raise DataError(
            f"The archive {archive} cannot be read.",
            f"{type(error).__name__}: {error}. It is cut, damaged, or one part of several.",
            "Fetch it again, or remove it from the corpus to go on without what it holds.",
        ) from error
    return {
        _plain(info.filename): Member(
            archive, info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC
        )
        for info in infos
        if not info.is_dir() and not info.flag_bits & 1  # encrypted ones cannot be read
    }


def _tar_index(archive: str, file: Any) -> Index:
    found: Index = {}
    size = file.size()
    try:
        with tarfile.open(fileobj=file, mode="r:") as opened:
            for member in opened:
                if member.isreg() and member.offset_data + member.size <= size:
                    own = Member(archive, member.offset_data, member.size, member.size)
                    found[_plain(member.name)] = own
    except tarfile.TarError:
        pass  # what precedes the damage can be read; what it hides is missing where a record names it
    return found


def _plain(name: str) -> str:
    plain = name if "/" in name else name.replace("\\", "/")  # as some packers of Windows write
    return str(PurePosixPath(plain.lstrip("/"))) if plain.strip("/.") else ""


def member_bytes(file: Any, member: Member) -> bytes:
    """The bytes of a member.

    Args:
        file: Its archive, opened.

    Raises:
        ArchiveError: For a damaged member or one packed in an unknown way.
    """
    file.seek(_data_offset(file, member))
    data = file.read(member.stored)
    if member.method == _DEFLATED:
        try:
            data = zlib.decompress(data, -zlib.MAX_WBITS)
        except zlib.error as error:
            raise ArchiveError(f"it is damaged in {member.archive}: {error}") from error
    elif member.method != _STORED:
        raise ArchiveError(
            f"it is packed in a way that is not read (method {member.method} of {member.archive})"
        )
    if len(data) != member.size or (member.crc is not None and zlib.crc32(data) != member.crc):
        raise ArchiveError(f"it is cut or damaged in {member.archive}")
    return data


def _data_offset(file: Any, member: Member) -> int:
    if not member.archive.lower().endswith(".zip"):
        return member.at
    file.seek(member.at)
    head = file.read(_LOCAL_HEADER)
    if len(head) < _LOCAL_HEADER:
        raise ArchiveError(f"{member.archive} ends before it")
    name, extra = struct.unpack("<HH", head[26:])
    return member.at + _LOCAL_HEADER + name + extra


def find_member(name: str, archives: tuple[str, ...], index: Callable[[str], Index]) -> Member | None:
    """The member that stands for a file of the corpus.

    Args:
        name: Relative to the root, also with the archive as a folder: ``photos.zip/1.png``.
        archives: All with an index, in order.
        index: The index of one.
    """
    for archive in archives:
        folder = PurePosixPath(archive).parent
        for place in (archive, str(PurePosixPath(archive).with_suffix("")), str(folder)):
            inner = name.removeprefix(f"{place}/") if place != "." else name
            if (inner != name or place == ".") and (member := index(archive).get(inner)):
                return member
    alike = [member for archive in archives if (member := index(archive).get(name))]
    return alike[0] if len(alike) == 1 else None


def section(file: Any, member: Member) -> Section | None:
    """A seekable view of a member that is not packed; None for one that is."""
    return Section(file, _data_offset(file, member), member.size) if member.method == _STORED else None
