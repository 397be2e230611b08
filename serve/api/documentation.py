"""The documentation page at `/docs`, drawn from the app's own description."""

from __future__ import annotations

import inspect

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from serve.api.page import HEADERS
from serve.api.settings import ServeSettings
from serve.docs.page import docs_page


def documentation_router(settings: ServeSettings, live_protocol: str) -> APIRouter:
    """The route of the page; `live_protocol` describes the messages of `/v1/live`."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def docs(request: Request) -> HTMLResponse:
        page = docs_page(
            request.app.openapi(),
            str(request.base_url).rstrip("/"),
            settings.model_name,
            inspect.cleandoc(live_protocol),
            keyed=settings.access.keys is not None,
        )
        return HTMLResponse(page, headers=HEADERS)

    return router
