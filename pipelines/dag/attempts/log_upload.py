"""Copies its input to its output and to a log on an object store, as ``tee -a`` does to one on a disk.

python -m pipelines.dag.attempts.log_upload <URI of the log>
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from casa_core.errors import StoreError
from pipelines.storage.growing import append_to
from pipelines.storage.uri import open_folder


def main() -> None:
    """Copy until the input ends, which is when the last process that prints has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the log's end counts, however the job is ended
    log = append_to(open_folder(sys.argv[1]))
    while block := os.read(sys.stdin.fileno(), 1 << 16):
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), block)
        log.write(block)
    with contextlib.suppress(StoreError):
        log.close()


if __name__ == "__main__":
    main()
