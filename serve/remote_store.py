"""The store deployment as endpoints call it: for live sessions and for uploaded pictures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve.files.store import StoredFile
from serve.moving_stream import GONE
from serve.own_calls import call_apart
from serve.session_table import Stored, Update, Verdict

logger = logging.getLogger("casa.serve")
ATTEMPTS, AGAIN_AFTER_S = 3, 0.5
"""How often a call is made whose process dies, and seconds in between."""


class RemoteStore:
    """:class:`serve.store_replica.StoreReplica` behind its handle: ``StoreCalls`` and ``Files``.

    Args:
        seconds: How long it keeps a file after its last use.
    """

    def __init__(self, handle: DeploymentHandle, seconds: float) -> None:
        self._handle, self.seconds = handle, seconds

    async def keep(
        self, holder: str, held: Mapping[str, int], updates: Sequence[Update], ended: Mapping[str, int]
    ) -> Verdict:
        """As the table's."""
        return await self._call("keep", holder, held, updates, ended)

    async def take(self, session_id: str, taker: str, new: bool = False) -> Stored | None:
        """As the table's."""
        return await self._call("take", session_id, taker, new)

    async def put(self, data: bytes, name: str) -> StoredFile:
        """As ``Files.put``."""
        return await self._call("put", data, name)

    async def get(self, file_id: str) -> StoredFile | None:
        """As ``Files.get``."""
        return await self._call("get", file_id)

    async def delete(self, file_id: str) -> bool:
        """As ``Files.delete``."""
        return await self._call("delete", file_id)

    async def _call(self, method: str, *arguments: Any) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await call_apart(getattr(self._handle, method), *arguments)
            except GONE as error:
                if attempt == ATTEMPTS:
                    raise
                logger.warning("the store is gone (%s); again", type(error).__name__)
                await asyncio.sleep(AGAIN_AFTER_S)
        raise AssertionError("the last attempt returns or raises")
