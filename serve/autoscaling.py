"""How many engines there should be: by open streams, by lag and by the answers that wait.

Ray Serve asks :func:`replicas_wanted` in its controller, which has not installed this project: the module
imports nothing of it. Serve adds the delays and the bounds.
"""

from __future__ import annotations

import math
from typing import Any

FULL = 0.75
"""Share of an engine's slots for streams, or of its time, at which it is full: room for what comes next."""
LATE = 0.1
"""Share of captions after their deadline from which on there are too few engines."""


def replicas_wanted(context: Any) -> tuple[int, dict[str, Any]]:
    """The number of engines wanted.

    Args:
        context: Ray Serve's `AutoscalingContext`; its metrics are those of
            `serve.engine_replica.EngineReplica.record_autoscaling_stats`.
    """
    now = context.current_num_replicas
    metrics = context.aggregated_metrics or {}

    def total(name: str) -> float:
        return sum((metrics.get(name) or {}).values())

    engines = len(metrics.get("stream_slots") or {})
    if not engines:
        return context.target_num_replicas, {}
    slots = total("stream_slots") / engines
    wanted = max(total("streams") / (FULL * slots), total("live_share") / FULL)
    short = total("waiting") > total("answer_slots") or total("late") > LATE * max(total("captions"), 1.0)
    wanted = max(wanted, now + 1 if short else 0)
    return max(math.ceil(wanted - 1e-9), 1), {}
