"""Errors of a Ray cluster that is not reached or takes nothing, without importing Ray."""

from __future__ import annotations

from casa_core.errors import ClusterError


class Unreachable(ClusterError):
    """The cluster does not answer, or not in time."""


class Busy(Unreachable):
    """The cluster answers with a server's error: it is still starting, or overloaded."""
