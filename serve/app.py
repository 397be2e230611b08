"""The Ray Serve application: a thin endpoint that clients reach, and the engines behind it.

Ray starts it by its import string `serve.app:build`, with the settings as JSON arguments. The endpoint holds
connections and live sessions; the engines hold the model. They scale, leave and crash without the clients:
:mod:`serve.engines`. The store keeps what another endpoint needs to go on with the sessions of one that has
crashed, or that another endpoint has: :mod:`serve.session_keeper`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI
from ray import cloudpickle
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from serve import autoscaling
from serve.api.settings import ServeSettings
from serve.asgi import build_app
from serve.engine_replica import EngineReplica
from serve.engines import Engines
from serve.live.state import Kept
from serve.loading import with_local_folders
from serve.loopback import keep_replica_on_loopback
from serve.moving_stream import GONE, detached
from serve.observe.logs import configure_logs
from serve.remote_store import RemoteStore
from serve.session_keeper import SessionKeeper
from serve.store_replica import StoreReplica

logger = logging.getLogger("casa.serve")
ENDPOINT, ENGINE, STORE = "endpoint", "engine", "store"
CONNECTIONS = 20_000
"""Connections of one endpoint; what each may do is bounded by its limits."""
DRAINED_WITHIN_S = 120.0
"""Seconds that an engine which leaves has for its last answers; its streams move at once."""
ROUTING_PERIOD_S = 1.0
"""How often engines are asked which models they hold."""
SESSIONS_END_WITHIN_S = 4 * 3600.0
"""Seconds that an endpoint which leaves has for its last sessions: no session is longer."""
HANDED_OVER_WITHIN_S = 20.0
"""Seconds that an endpoint has to hand a session over; then it goes on from what was kept of it."""


@ray_serve.deployment(name=ENDPOINT)
@ray_serve.ingress()
class Endpoint:
    """One replica of the API. Takes `ServeSettings` as JSON, and the handles of engines and store."""

    def __init__(self, settings: dict[str, Any], engines: DeploymentHandle, store: DeploymentHandle) -> None:
        self._copies = ExitStack()  # as long as the replica runs
        self._settings = for_all_engines(
            ServeSettings.model_validate(with_local_folders(settings, self._copies, names=("demo_clips",)))
        )
        configure_logs(self._settings.log)
        if self._settings.loopback_only:
            keep_replica_on_loopback()
        self._engines = Engines(engines, several=bool(self._settings.models))
        self._store = RemoteStore(store, self._settings.limits.stored_file_seconds)
        context = ray_serve.get_replica_context()
        self._name, self._app_name = context.replica_id.unique_id, context.app_name
        logger.info("the endpoint serves %s", ", ".join(self._settings.checkpoints))

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Serve's proxy gives each request its id, which the app adopts, and writes it into the response.
        keeper = SessionKeeper(self._name, self._store, self._fetch, self._engines.end_stream)
        app = build_app(
            self._engines,
            self._settings,
            request_id_headers=False,
            store=keeper,
            name=self._name,
            files=self._store,
        )
        self._sessions = app.state.sessions
        keeper.on_taken = lambda one: detached(self._sessions.hand_over(one, to_read=False))
        return app

    async def hand_over(self, holder: str, session_id: str, to_read: bool) -> tuple[bool, Kept | None]:
        """Whether this is the endpoint that is meant, and its session for another endpoint."""
        if holder != self._name:
            return False, None  # that one is gone
        return True, await self._sessions.hand_over(session_id, to_read=to_read)

    async def _fetch(self, holder: str, session_id: str, to_read: bool) -> Kept | None:
        """A session from another endpoint: `SessionKeeper.fetch`."""
        others = ray_serve.get_deployment_handle(ENDPOINT, self._app_name).options(session_id=holder)
        if holder == self._name:
            return None
        try:
            async with asyncio.timeout(HANDED_OVER_WITHIN_S):
                lives, kept = await others.hand_over.remote(holder, session_id, to_read)
        except (*GONE, TimeoutError) as error:
            logger.warning("session %s: endpoint %s is gone (%s)", session_id, holder, type(error).__name__)
            return None
        if lives and kept is None:
            raise LookupError(f"endpoint {holder} has no session {session_id}")
        return kept


def for_all_engines(settings: ServeSettings) -> ServeSettings:
    """The settings of an endpoint: as many sessions as all its engines may hold, who refuse what is more."""
    most = settings.limits.sessions * max(settings.replicas.min, settings.replicas.max)
    return settings.model_copy(update={"limits": settings.limits.model_copy(update={"sessions": most})})


def build(args: dict[str, Any]) -> Application:
    """Build the application that Ray Serve runs, from `ServeSettings` as JSON."""
    settings = ServeSettings.model_validate(args)
    limits, replicas = settings.limits, settings.replicas
    # The controller, which scales, has not installed this project.
    cloudpickle.register_pickle_by_value(autoscaling)
    most = max(replicas.min, replicas.max)
    engine = ray_serve.deployment(name=ENGINE)(EngineReplica).options(
        # Streams, answers and the calls about them; the engine itself says when it has enough.
        max_ongoing_requests=8 * (limits.sessions + limits.answers) + limits.waiting_requests,
        autoscaling_config={
            "min_replicas": replicas.min,
            "initial_replicas": replicas.min,
            "max_replicas": most,
            "upscale_delay_s": replicas.up_after_s,
            "downscale_delay_s": replicas.down_after_s,
            "look_back_period_s": 15,  # what is looked at changes slowly
            "policy": {"policy_function": "serve.autoscaling:replicas_wanted"},
        },
        max_constructor_retry_count=replicas.min + 1,  # what cannot be loaded is soon said
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        request_router_config={
            "request_router_class": "serve.routing.StickyRouter",
            "request_routing_stats_period_s": ROUTING_PERIOD_S,
        },
        graceful_shutdown_timeout_s=DRAINED_WITHIN_S,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2,
        health_check_timeout_s=30,
    )
    endpoint = Endpoint.options(
        num_replicas=settings.endpoints,
        max_surge_percent=100,  # the next one takes connections before this one stops to
        max_ongoing_requests=CONNECTIONS,
        ray_actor_options={"num_cpus": 0},
        request_router_config={"request_router_class": "serve.routing.EndpointRouter"},
        graceful_shutdown_timeout_s=SESSIONS_END_WITHIN_S,
        health_check_period_s=2,
        health_check_timeout_s=30,
    )
    store = ray_serve.deployment(name=STORE)(StoreReplica).options(
        num_replicas=1,
        max_surge_percent=100,
        max_ongoing_requests=CONNECTIONS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=10,
        health_check_period_s=2,
        health_check_timeout_s=30,
    )
    return endpoint.bind(args, engine.bind(args), store.bind(settings.model_dump(mode="json")))
