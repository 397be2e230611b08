"""Samples of WebDataset shards as records: text in ``.json`` or ``.txt``, pictures by suffix or content."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from casa_core.errors import MediaError
from casa_core.media.decode import image_header
from pipelines.data.read.corpora.picture_fields import PICTURE_SUFFIXES, TEXTS
from pipelines.data.read.corpora.videos import VIDEO_SUFFIXES
from pipelines.data.read.formats.lines import json_value
from pipelines.data.read.formats.tar_shards import TEXT_SUFFIXES, Group
from pipelines.data.read.source.base import BadRecord

_NUMBER = re.compile(r"\d+")
MEMBERS = "tar members"
"""Field of a tar's record: name → bytes, or None for a member that is no picture."""


def tar_record(group: Group) -> dict[str, Any] | BadRecord:
    """A sample's record: the object in its JSON, the caption in its text where the JSON has none, its id the
    key unless it has one, and ``MEMBERS``."""
    for name, target in group.links.items():
        reason = "missing_text" if _suffix(name) in TEXT_SUFFIXES else "missing_image"
        fix = "store the file itself (tar --dereference --hard-dereference)"
        return BadRecord(reason, f"{name} is a link to {target}, and has no bytes of its own: {fix}")
    row: Any = {}
    for kind in TEXT_SUFFIXES:
        names = [name for name in group.members if _suffix(name) == kind]
        if len(names) > 1:
            detail = f"the sample {group.key} has {len(names)} members .{kind}: {', '.join(names)}"
            return BadRecord("bad_record", detail)
        for name in names:
            found = _read(kind, name, group.members[name])
            if isinstance(found, BadRecord):
                return found
            if not any(row.get(field) is not None for field in TEXTS):
                row = {**row, **found}
    for name in group.members:
        if name.lower().endswith(VIDEO_SUFFIXES):
            return BadRecord("missing_image", f"{name} is a video, and this reader reads pictures")
    pictures = {
        name: group.members[name] if _is_picture(name, group.members[name]) else None
        for name in _numbered(list(group.members))
    }
    return {**row, "id": row.get("id", group.key), MEMBERS: pictures}


def _numbered(names: list[str]) -> list[str]:
    """Names in the order of their numbers (0, 1, 2, 10) where they differ in nothing else."""
    pictures = [name for name in names if _suffix(name) not in TEXT_SUFFIXES]
    if len({_NUMBER.sub("#", name) for name in pictures}) > 1:
        return names
    return sorted(names, key=lambda name: [int(number) for number in _NUMBER.findall(name)])


def in_members(values: Sequence[Any], members: Mapping[str, bytes | None]) -> list[Any]:
    """A record's pictures with the tar's members in their place.

    Args:
        values: As the record names them: by the names of members, by as many names of another place, or not
            at all; what is no name stays.
        members: As in ``MEMBERS``.

    Raises:
        BadRecord: ``missing_image`` where the names fit neither way.
    """
    found = [{"bytes": data, "path": name} for name, data in members.items() if data is not None]
    if not values:
        return list(found)
    paths = [value.get("path") if isinstance(value, Mapping) else value for value in values]
    written = [path for path in paths if isinstance(path, str) and not path.startswith("data:")]
    if len(written) < len(paths):
        return list(values)
    by_name = {PurePosixPath(entry["path"]).name: entry for entry in found}
    names = [PurePosixPath(path.replace("\\", "/")).name for path in written]
    if all(name in by_name for name in names):
        return [by_name[name] for name in names]
    if len(names) == len(found) and not any(name in by_name for name in names):
        return list(found)
    raise BadRecord("missing_image", f"the record names {', '.join(written)}")


def _read(kind: str, name: str, data: bytes) -> dict[str, Any] | BadRecord:
    if kind == "txt":
        try:
            return {"caption": data.decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            return BadRecord("bad_encoding", str(error))
    found = json_value(data)
    if isinstance(found, dict | BadRecord):
        return found
    return BadRecord("bad_record", f"{name} is no object")


def _is_picture(name: str, data: bytes) -> bool:
    """By its suffix; with another one, or none, by what its first bytes say."""
    if _suffix(name) in PICTURE_SUFFIXES:
        return True
    if _suffix(name) in TEXT_SUFFIXES:
        return False
    try:
        file_format, _ = image_header(data)
    except MediaError as error:
        return error.reason == "decompression_bomb"
    return file_format != "TGA"  # which has no mark of its own: any few bytes may look like it


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix[1:].lower()
