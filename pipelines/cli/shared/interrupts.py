"""What Ctrl-C does: the first ends a command in words, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

INTERRUPTED = 130
"""The exit code, as shells have it: 128 and SIGINT's number."""


def end_at_next_interrupt() -> None:
    """From now on an interrupt ends the process at once: what is said and tidied up now may be cut off.

    Without, it would end with a traceback of wherever it came.
    """
    if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handler
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: Any) -> None:
    os._exit(INTERRUPTED)
