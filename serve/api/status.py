"""Model listing and health checks: /v1/models, /healthz, /readyz."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from serve.api.errors import check_model
from serve.api.responses import Health, ModelCard, ModelList, NotReady, Ready
from serve.api.settings import ServeSettings
from serve.calls import EngineCalls

READY_WITHIN_S = 5.0
SHOWN_LIMITS = (
    "body_bytes",
    "images_per_request",
    "image_pixels",
    "request_pixels",
    "messages_per_request",
    "text_characters",
    "choices",
    "stop_strings",
    "frame_bytes",
    "frame_pixels",
    "session_frames",
    "query_characters",
)


def status_router(
    client: EngineCalls, settings: ServeSettings, open_sessions: Callable[[], int]
) -> APIRouter:
    """The routes of model listing and health checks."""
    router = APIRouter()
    models = {
        name: {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "casa",
            "fingerprint": checkpoint.fingerprint,
            "max_model_len": _context(Path(checkpoint.folder)),
            "limits": {
                **{name: getattr(settings.limits, name) for name in SHOWN_LIMITS},
                "max_new_tokens": settings.max_new_tokens,
                "max_tokens_per_frame": settings.max_tokens_per_frame,
            },
        }
        for name, checkpoint in settings.checkpoints.items()
    }

    @router.get("/v1/models", response_model=ModelList)
    async def list_models() -> dict[str, Any]:
        """The served models and their limits."""
        return {"object": "list", "data": list(models.values())}

    @router.get("/v1/models/{name:path}", response_model=ModelCard)
    async def retrieve_model(name: str) -> dict[str, Any]:
        """One model, by its name."""
        check_model(name, models)
        return models[name]

    @router.get("/healthz", response_model=Health)
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

    @router.get("/readyz", responses={200: {"model": Ready}, 503: {"model": NotReady}})
    async def readyz() -> JSONResponse:
        """200 if the engine's thread runs a new call within seconds; 503 if it is stuck or gone."""
        try:
            await asyncio.wait_for(client.ping(), READY_WITHIN_S)
        except (TimeoutError, RuntimeError) as error:
            reason = "the engine is busy" if isinstance(error, TimeoutError) else str(error)
            return JSONResponse({"status": "unavailable", "reason": reason}, status_code=503)
        return JSONResponse({"status": "ready", "model": settings.model_name})

    return router


def _context(model_folder: Path) -> int | None:
    """Text positions of a checkpoint; `None` where its configuration does not lie here."""
    try:
        config = json.loads((model_folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("text_config", config).get("max_position_embeddings")
