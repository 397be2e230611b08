"""How calls find their replica: those about a stream go to the one that holds it, others to the idler of two.

A call names its replica by the handle's session id, or its model where there are several: then it goes to
replicas that hold the model and have room. (Ray Serve has a field of its own for the model, but in 2.60 a
router that is not one of Serve's keeps every call that has it, for ever.) The router hears first when a
replica leaves (drained, scaled down, replaced or dead), and tells those that have streams there. For a while,
one that leaves still takes calls that name it, so that streams can be fetched from it.

Clients' calls about a live session find its endpoint in the same way, in Ray's proxies.
"""

from __future__ import annotations

import hashlib
import pickle
import random
import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

LEAVING_S = 600.0
"""Seconds that a replica which has left is known."""
MODEL_PREFIX = "model:"
"""Begins a session id that names a model."""
SESSIONS = "/v1/streaming/sessions/"


class StickyRouter(RequestRouter):
    """Sends a call to the replica whose id is its session id, and others to the idler of two."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leaving: dict[ReplicaID, float] = {}  # with the time of each departure
        self._sent: dict[str, str] = {}  # where a model was asked for last, which loads it if it has not

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replica that the call names; two at random where it names none, or one that is gone: of those
        that hold its model, if any has room."""
        named = ""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # after a round that found none
            named = pending_request.metadata.session_id
        for one in candidate_replicas if named else ():
            if one.replica_id.unique_id == named:
                return [[one]]
        staying = [one for one in candidate_replicas if one.replica_id not in self._leaving]
        if named.startswith(MODEL_PREFIX):
            staying = _holding(named.removeprefix(MODEL_PREFIX), staying, self._sent.get(named)) or staying
        return [random.sample(staying, min(len(staying), 2))] if staying else []

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Note where a model was asked for: what it holds is heard later."""
        if (named := pending_request.metadata.session_id).startswith(MODEL_PREFIX):
            self._sent[named] = replica_id.unique_id

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Follow the replicas that there are; those that have left stay known for a while."""
        now = time.monotonic()
        here = {one.replica_id for one in replicas}
        gone = {name: one for name, one in self.curr_replicas.items() if name not in here}
        left = {name: self._leaving.get(name, now) for name in gone}
        self._leaving = {name: since for name, since in left.items() if now - since < LEAVING_S}
        super().update_replicas([*replicas, *(gone[name] for name in self._leaving)])
        self._tell()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget a replica."""
        self._leaving.pop(replica_id, None)
        super().on_replica_actor_died(replica_id)
        self._tell()

    def _tell(self) -> None:
        """Tell those that have streams there which replicas stay."""
        from serve.departures import follow  # here: this module is copied, to processes without ours too

        follow(frozenset(one.unique_id for one in self.curr_replicas if one not in self._leaving))


def _holding(model: str, replicas: list[RunningReplica], latest: str | None) -> list[RunningReplica]:
    """Those of some replicas that hold a model and have room, or else the latest that was asked for it."""
    free = [one for one in replicas if not one.routing_stats.get("full")]
    holding = [one for one in free if model in one.routing_stats.get("models", ())]
    return holding or [one for one in free if one.replica_id.unique_id == latest]


class EndpointRouter(StickyRouter):
    """Sends a call about a live session to the endpoint that opened it, whose name is in the session's id;
    where that is gone, all calls about the session to one of the others.

    The id is in the address, or in the header `x-session-id`.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replica that has the session; two at random where the call is about none."""
        session_id = "" if pending_request is None else _session_of(pending_request)
        staying = [one for one in candidate_replicas if one.replica_id not in self._leaving]
        if not session_id or not staying:
            return await super().choose_replicas(candidate_replicas, pending_request)
        assert pending_request is not None
        pending_request.routing_context.should_backoff = True
        name = session_id.split("-")[1]

        def nearness(one: RunningReplica) -> tuple[bool, bytes]:
            replica = one.replica_id.unique_id
            return replica == name, hashlib.blake2b(f"{session_id} {replica}".encode()).digest()

        return [[max(staying, key=nearness)]]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Note nothing: clients write what they like into the header."""

    def _tell(self) -> None:
        """There are no streams at endpoints."""


def _session_of(request: PendingRequest) -> str:
    """Id of the live session that a call of a client is about, if it is about one."""
    session_id = request.metadata.session_id
    if not session_id and request.metadata.is_http_request and request.args:
        # Ray's proxy hands its request on as bytes.
        path = pickle.loads(request.args[0]).asgi_scope["path"]
        session_id = path.removeprefix(SESSIONS).partition("/")[0] if path.startswith(SESSIONS) else ""
    return session_id if session_id.startswith("live-") else ""
