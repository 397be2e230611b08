"""Model listing and health checks: /v1/models, /healthz, /readyz."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from serve.api.engine_client import EngineClient
from serve.api.errors import model_not_found
from serve.api.settings import ServeSettings

READY_WITHIN_S = 5.0


def status_router(
    client: EngineClient, settings: ServeSettings, open_sessions: Callable[[], int]
) -> APIRouter:
    """The routes of model listing and health checks."""
    router = APIRouter()
    model = {
        "id": settings.model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "casa",
        "fingerprint": settings.checkpoint,
    }

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @router.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> dict[str, Any]:
        if name != settings.model_name:
            raise model_not_found(name, settings.model_name)
        return model

    @router.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """200 while the process answers. `service` identifies this project; `fingerprint` is the deployment's
        identity and `checkpoint` its training run's."""
        return {
            "status": "ok",
            "service": "casa",
            "model": settings.model_name,
            "fingerprint": settings.fingerprint,
            "checkpoint": settings.checkpoint,
            "live_sessions": open_sessions(),
        }

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        """200 if the engine's thread runs a new call within seconds; 503 if it is stuck or gone."""
        try:
            await asyncio.wait_for(client.ping(), READY_WITHIN_S)
        except (TimeoutError, RuntimeError) as error:
            reason = "the engine is busy" if isinstance(error, TimeoutError) else str(error)
            return JSONResponse({"status": "unavailable", "reason": reason}, status_code=503)
        return JSONResponse({"status": "ready", "model": settings.model_name})

    return router
