"""Retries with exponential back-off: the one retry of every request over a network, and what may pass."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

ATTEMPTS = 6
FIRST_WAIT_S = 0.25
"""Seconds before the second attempt; each further wait is twice as long."""
MOST_WAIT_S = 120.0
"""A server that asks for more is asked again after this."""

_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_NUMBERS = (errno.EINVAL, errno.ENOSYS)
"""What s3fs makes of a request that a server does not take."""
_PASSING_STATUS = (408, 425, 429)
_NETWORK_LIBRARIES = ("aiohttp", "httpx", "httpcore")
_NETWORK_CLASSES = ("HTTPClientError", "ConnectionError")
"""botocore's bases of what a network does: a connection that fails or ends early, an answer that is late."""

Result = TypeVar("Result")


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed: errors of the network, a busy server, and a server's own.

    s3fs and gcsfs raise what a server answers as an ``OSError``, the hub's client with the answer itself.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status >= 500 or status in _PASSING_STATUS
    if isinstance(error, OSError):
        return not isinstance(error, _FINAL) and error.errno not in _FINAL_NUMBERS
    bases = [each.__name__ for each in type(error).__mro__ if each.__module__.startswith("botocore")]
    return type(error).__module__.startswith(_NETWORK_LIBRARIES) or any(
        name in _NETWORK_CLASSES for name in bases
    )


def retry_after(error: BaseException) -> float:
    """Seconds that a server wants to be left alone, by its answer's ``Retry-After``; 0 where it has none."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    value = headers.get("retry-after") if isinstance(headers, Mapping) else None
    if not isinstance(value, str):
        return 0.0
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    from email.utils import parsedate_to_datetime  # late: every job starts with this module

    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0


def retry(
    action: Callable[[], Result],
    may_pass: Callable[[Exception], bool] = may_pass,
    attempts: int = ATTEMPTS,
) -> Result:
    """Calls ``action`` until it succeeds, up to ``attempts`` times, waiting longer each time, and as long as
    a server's ``Retry-After`` says, up to ``MOST_WAIT_S``.

    Args:
        action: May be called again after it failed.
        may_pass: Whether another attempt may succeed after this error.
        attempts: How often it is called at most.

    Raises:
        Exception: The first error that may not pass, or that of the last attempt.
    """
    for number in range(attempts):
        try:
            return action()
        except Exception as error:
            if number == attempts - 1 or not may_pass(error):
                raise
            wait = max(FIRST_WAIT_S * 2**number, min(retry_after(error), MOST_WAIT_S))
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")
