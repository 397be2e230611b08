"""GET /metrics: the app's metrics with the engine's, for Prometheus."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from casa_core.engine.load import LoadSnapshot
from serve.observe.exposition import CONTENT_TYPE
from serve.observe.metrics import Metrics

logger = logging.getLogger("casa.serve")
LOAD_WITHIN_S = 2.0


class LoadClient(Protocol):
    """The part of an engine's client that is used here."""

    async def load(self) -> LoadSnapshot:
        """What the engine holds now."""
        ...


def metrics_router(client: LoadClient, metrics: Metrics) -> APIRouter:
    """The route of the metrics."""
    router = APIRouter()

    @router.get("/metrics", response_class=PlainTextResponse)
    async def prometheus_metrics() -> Response:
        """Metrics in Prometheus's text format. Those of the engine are left out while it does not answer."""
        return Response(metrics.render(await _load(client)), media_type=CONTENT_TYPE)

    return router


async def _load(client: LoadClient) -> LoadSnapshot | None:
    try:
        return await asyncio.wait_for(client.load(), LOAD_WITHIN_S)
    except (TimeoutError, RuntimeError) as error:
        logger.warning("no metrics of the engine: %s", error or "it is busy")
        return None
