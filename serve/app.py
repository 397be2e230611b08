"""The Ray Serve application: puts `serve.api` on replicas.

Ray starts it by its import string `serve.app:build`, with the settings as JSON arguments.
"""

from __future__ import annotations

import importlib
import logging
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve import Application

from casa_core.dtypes import DTYPES
from casa_core.engine.protocol import LoopProtocol
from casa_core.engine.settings import EngineSettings
from casa_core.errors import ConfigError
from serve.api.engine_client import EngineClient
from serve.api.settings import Limits, ServeSettings
from serve.asgi import build_app
from serve.loopback import keep_replica_on_loopback
from serve.observe.logs import configure_logs

logger = logging.getLogger("casa.serve")
DEPLOYMENT_NAME = "endpoint"


def load_engine(settings: ServeSettings) -> LoopProtocol:
    """Import the engine class that the settings name and load the checkpoint with it, sized by their limits.

    Steps that are to be compiled are: Serve calls a replica ready once this is done.

    Raises:
        ConfigError: The name cannot be imported, or what ``compile`` or ``quantize`` need is missing here.
    """
    own = replace(engine_settings(settings.limits), graphs=settings.graphs)
    options: dict[str, Any] = {"settings": own}
    if settings.dtype != "auto":
        options["dtype"] = DTYPES[settings.dtype]
    if settings.quantize != "none":
        options["quantize"] = settings.quantize
    if settings.compile:
        options["compile"] = True
    engine = _named(settings.engine, "engine").from_pretrained(settings.model_folder, **options)
    if settings.compile or settings.graphs:
        logger.info("compiling or recording decode steps; the replica is ready afterwards")
        logger.info("decode steps are ready, after %.0f s", engine.warm_up())
    return engine


def engine_settings(limits: Limits) -> EngineSettings:
    """The size and shares of an engine behind the API."""
    return EngineSettings(
        slots=limits.sessions + limits.answers,
        answer_slots=limits.answers,
        waiting=limits.waiting_requests,
        queued_frames=limits.queued_frames,
        max_pixels=limits.frame_pixels,
        threads=True,
    )


def _named(path: str, what: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"The {what} {path!r} cannot be loaded.", str(error), "Name it as module:name."
        ) from error


def with_local_folders(settings: dict[str, Any], copies: ExitStack) -> dict[str, Any]:
    """The settings with paths of this machine for the folders that are to be copied to it.

    Args:
        settings: `ServeSettings` as JSON.
        copies: Holds the copies until it is closed.
    """
    digests = settings.get("digests", {})
    if not digests:
        return settings
    fetch = _named(settings["fetch"], "function")
    folders = {name: copies.enter_context(fetch(settings[name], digest)) for name, digest in digests.items()}
    return {**settings, **folders}


@ray_serve.deployment(name=DEPLOYMENT_NAME)
@ray_serve.ingress()
class Endpoint:
    """One replica: one engine on its thread, one ASGI app. Takes `ServeSettings` as JSON."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._copies = ExitStack()  # as long as the replica runs
        self._settings = ServeSettings.model_validate(with_local_folders(settings, self._copies))
        configure_logs(self._settings.log)
        if self._settings.loopback_only:
            keep_replica_on_loopback()
        self._client = EngineClient(load_engine(self._settings))
        logger.info("serving %s from %s", self._settings.model_name, self._settings.model_folder)

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Serve's proxy gives each request its id, which the app adopts, and writes it into the response.
        return build_app(self._client, self._settings, request_id_headers=False)


def build(args: dict[str, Any]) -> Application:
    """Build the application that Ray Serve runs, from `ServeSettings` as JSON."""
    settings = ServeSettings.model_validate(args)
    limits = settings.limits
    # A live connection counts as one ongoing request for as long as it is open, so the bound covers both.
    ongoing = limits.sessions + limits.waiting_requests + limits.answers
    options: dict[str, Any] = {
        "max_ongoing_requests": ongoing,
        "autoscaling_config": {
            "min_replicas": settings.replicas.min,
            "initial_replicas": settings.replicas.min,
            "max_replicas": max(settings.replicas.min, settings.replicas.max),
            "target_ongoing_requests": max(1, limits.sessions // 2),
        },
        "ray_actor_options": {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        "graceful_shutdown_timeout_s": 5,
    }
    return Endpoint.options(**options).bind(args)
