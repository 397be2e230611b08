"""Retries with exponential back-off: the one retry of every request over a network, and what may pass.

The clients below (botocore, s3fs, gcsfs, adlfs, the hub's) know errors of their own; they are told apart here
by the status of an HTTP answer, or by the library that raised them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

ATTEMPTS = 6
FIRST_WAIT_S = 0.25
"""Seconds before the second attempt; each further wait is twice as long."""

_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_PASSING_STATUS = frozenset({408, 409, 425, 429})
_NETWORK_LIBRARIES = ("aiohttp", "httpx", "httpcore")
_NETWORK_CLASSES = frozenset({"HTTPClientError", "ConnectionError", "IncompleteReadError"})
"""botocore's bases of what a network does: a connection that fails or ends early, an answer that is late."""

Result = TypeVar("Result")


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed: errors of the network, a busy server, and a server's own."""
    status = status_of(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUS
    if isinstance(error, OSError):
        return not isinstance(error, _FINAL)
    if type(error).__module__.partition(".")[0] in _NETWORK_LIBRARIES:
        return True
    return any(
        each.__module__.startswith("botocore") and each.__name__ in _NETWORK_CLASSES
        for each in type(error).__mro__
    )


def status_of(error: BaseException) -> int | None:
    """The status of the HTTP answer that an error, or its cause, reports."""
    for each in (error, error.__cause__):
        answer: Any = getattr(each, "response", None)
        if isinstance(answer, dict):  # botocore's
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(answer, "status_code", None)
        if isinstance(status, int):
            return status
    return None


def retry(action: Callable[[], Result], may_pass: Callable[[Exception], bool] = may_pass) -> Result:
    """Calls ``action`` until it succeeds, up to ``ATTEMPTS`` times, waiting longer each time.

    Args:
        action: May be called again after it failed.
        may_pass: Whether another attempt may succeed after this error.

    Raises:
        Exception: The first error that may not pass, or that of the last attempt.
    """
    for number in range(ATTEMPTS):
        try:
            return action()
        except Exception as error:
            if number == ATTEMPTS - 1 or not may_pass(error):
                raise
        time.sleep(FIRST_WAIT_S * 2**number)
    raise AssertionError("the last attempt returns or raises")
