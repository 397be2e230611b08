"""Sizes of ZeRO's buffers, which its configuration sets and estimates of memory count."""

from __future__ import annotations

REDUCE_BUCKET = ALLGATHER_BUCKET = 50_000_000
"""Elements of a communication bucket."""
LIVE_PARAMETERS = 1_000_000_000
"""Elements that ZeRO-3 holds whole at once: prefetched, in use, soon to be used again."""
PERSISTENT = 100_000
"""ZeRO-3 keeps a tensor of fewer elements whole on every worker."""
