"""The store deployment: what outlives an endpoint, in a process of its own, which loads no model code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve.files.store import FileStore, StoredFile
from serve.loopback import keep_replica_on_loopback
from serve.session_table import SessionTable, Stored, Update, Verdict

MOST_BYTES = 512 * 1024 * 1024
"""Bytes of all live sessions: events, waiting frames, texts."""
HEARD_WITHIN_S = 60.0
"""Seconds beyond `limits.resume_seconds` for which a session of an endpoint that is gone is kept: in which
another one starts."""


class StoreReplica:
    """Live sessions and uploaded pictures of all endpoints. Takes `ServeSettings` as JSON."""

    def __init__(self, settings: dict[str, Any]) -> None:
        if settings["loopback_only"]:
            keep_replica_on_loopback()
        limits = settings["limits"]
        self._sessions = SessionTable(
            MOST_BYTES, limits["kept_events"], limits["resume_seconds"] + HEARD_WITHIN_S
        )
        self._files = FileStore(limits["stored_files_bytes"], limits["stored_file_seconds"])

    async def keep(
        self, holder: str, held: Mapping[str, int], updates: Sequence[Update], ended: Mapping[str, int]
    ) -> Verdict:
        """As ``SessionTable.keep``."""
        return self._sessions.keep(holder, held, updates, ended)

    async def take(self, session_id: str, taker: str, new: bool = False) -> Stored | None:
        """As ``SessionTable.take``."""
        return self._sessions.take(session_id, taker, new)

    async def put(self, data: bytes, name: str) -> StoredFile:
        """As ``FileStore.put``."""
        return await self._files.put(data, name)

    async def get(self, file_id: str) -> StoredFile | None:
        """As ``FileStore.get``."""
        return await self._files.get(file_id)

    async def delete(self, file_id: str) -> bool:
        """As ``FileStore.delete``."""
        return await self._files.delete(file_id)
