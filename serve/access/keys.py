"""API keys at work: who a key belongs to, and whether its owner has some of its share left.

Shares are counted per replica: with several, a client has the sum.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path

from casa_core.errors import ConfigError
from infra.api_keys import ApiKey, hash_of, read_keys
from serve.access.refused import Refused

logger = logging.getLogger("casa.serve")
RELOAD_S = 1.0
"""How old the view of the file may be: a key that is removed works this much longer."""
MINUTE_S = 60.0


class KeyRing:
    """The keys of a file, which is read again when it changes; used from one event loop.

    Args:
        path: As `casa keys` writes it.
        clock: Seconds that only grow.

    Raises:
        ConfigError: The file cannot be used. Later on, a broken file leaves the keys as they were.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._keys = read_keys(path)
        self._state, self._checked = self._file_state(), clock()
        self._requests: defaultdict[str, deque[float]] = defaultdict(deque)

    def owner(self, offered: str | None) -> ApiKey:
        """The key that was offered, as it is stored.

        Raises:
            Refused: 401.
        """
        self._read_again()
        if not offered:
            raise self._unknown("No API key was given.")
        digest = hash_of(offered)
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]  # all are compared
        if not found:
            raise self._unknown("The API key is not known here.")
        return found[0]

    def count_request(self, key: ApiKey) -> None:
        """Count a call.

        Raises:
            Refused: 429 if there were as many within the last minute as there may be.
        """
        if key.requests_per_minute is None:
            return
        now, made = self._clock(), self._requests[key.name]
        while made and now - made[0] >= MINUTE_S:
            made.popleft()
        if len(made) >= key.requests_per_minute:
            wait = MINUTE_S - (now - made[-key.requests_per_minute])
            raise Refused(
                429,
                f"The API key {key.name} may make {key.requests_per_minute} calls per minute. Wait "
                f"{wait:.0f} seconds.",
                code="rate_limit_exceeded",
                headers={"retry-after": str(max(1, round(wait)))},
            )
        made.append(now)

    def _read_again(self) -> None:
        now = self._clock()
        if now - self._checked < RELOAD_S:
            return
        self._checked = now
        if (state := self._file_state()) == self._state:
            return
        self._state = state
        try:
            self._keys = read_keys(self._path)
            logger.info("the API keys were read again; there are %d", len(self._keys))
        except ConfigError as error:
            logger.error("the API keys stay as they were: %s %s", error.what, error.why)

    def _file_state(self) -> tuple[int, int] | None:
        try:
            state = self._path.stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_size

    @staticmethod
    def _unknown(what: str) -> Refused:
        message = (
            f"{what} Send it as `Authorization: Bearer KEY`; the `casa` commands take it from CASA_API_KEY, "
            "and `casa keys add` makes one."
        )
        return Refused(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
