"""Which replicas of the engine there are, from the router that hears it to those that have streams there.

A module of its own: Ray Serve gives a router to each process as a copy of its whole module, so that nothing
in that module is shared.
"""

from __future__ import annotations

from collections.abc import Callable

_here: frozenset[str] = frozenset()
_listeners: set[Callable[[str], None]] = set()


def replicas() -> frozenset[str]:
    """Ids of the replicas that take calls, as last heard."""
    return _here


def on_departure(listener: Callable[[str], None]) -> Callable[[], None]:
    """Have a function called with the id of each replica that leaves, on a thread of Serve's.

    Returns:
        Ends it.
    """
    _listeners.add(listener)
    return lambda: _listeners.discard(listener)


def follow(here: frozenset[str]) -> None:
    """Take the ids of the replicas that there are now; those that are gone are told."""
    global _here
    gone, _here = _here - here, here
    for replica in gone:
        for listener in list(_listeners):
            listener(replica)
