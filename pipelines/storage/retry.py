"""Retries with exponential back-off, for requests over a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

ATTEMPTS = 6
FIRST_WAIT_S = 0.25
"""Seconds before the second attempt; each further wait is twice as long."""

Result = TypeVar("Result")


def retry(action: Callable[[], Result], may_pass: Callable[[Exception], bool]) -> Result:
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
