"""The bound on live connections that are open at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serve.api.errors import ApiError


class SessionSlots:
    """Counts open live connections of one replica; used from its event loop only.

    Args:
        limit: Connections open at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.open = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold a slot.

        Raises:
            ApiError: 429 when none is free.
        """
        if self.open >= self._limit:
            raise ApiError(
                429,
                f"{self.open} live sessions are open, the most this server keeps. Try again later.",
                code="too_many_sessions",
                kind="rate_limit_error",
            )
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
