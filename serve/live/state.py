"""A live session at a moment, so that another process can go on with it."""

from __future__ import annotations

from dataclasses import dataclass

from casa_core.engine.requests import StreamSettings
from casa_core.engine.saved_session import SavedSession, Transcript
from serve.live.account import Account
from serve.live.event_log import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A session's own account, from which another process can continue it with what is kept of its stream.

    Attributes:
        seconds: Since the session began.
        event, events: Number of the latest event, and those that are kept.
        owner: Name of the API key that it belongs to.
    """

    session_id: str
    stream: StreamSettings
    account: Account
    seconds: float
    event: int
    events: tuple[Event, ...]
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """A session for another process: its account, and what its stream goes on from.

    Attributes:
        place: Where the stream still runs: its replica, and its name there.
    """

    run: RunState
    stream: SavedSession | Transcript | None
    place: tuple[str, str] | None = None
