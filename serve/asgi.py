"""The whole HTTP and WebSocket surface over one engine. No Ray in here: any ASGI server can run it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware import Middleware

from serve.access.keys import KeyRing
from serve.api.access import KeyMiddleware, SiteMiddleware
from serve.api.chat import chat_router
from serve.api.documentation import documentation_router
from serve.api.errors import install_error_handlers
from serve.api.files import files_router
from serve.api.middleware import BodyLimitMiddleware, RequestMiddleware
from serve.api.openapi import describe
from serve.api.page import page_router
from serve.api.request_images import ImageSources
from serve.api.settings import ServeSettings
from serve.api.status import status_router
from serve.calls import EngineCalls
from serve.fetch.fetcher import ImageFetcher
from serve.files.store import Files, FileStore
from serve.live import captions, messages
from serve.live.rest import rest_router
from serve.live.sessions import LiveSessions, SessionStore
from serve.live.socket import live_router
from serve.observe.client import ObservedClient
from serve.observe.metrics import Metrics
from serve.observe.middleware import ObserveMiddleware
from serve.observe.route import metrics_router

logger = logging.getLogger("casa.serve")


def build_app(
    client: EngineCalls,
    settings: ServeSettings,
    *,
    request_id_headers: bool = True,
    store: SessionStore | None = None,
    name: str = "",
    files: Files | None = None,
    fetcher: ImageFetcher | None = None,
) -> FastAPI:
    """Assemble the app.

    Args:
        client: Closed when the app shuts down.
        request_id_headers: Whether responses name their request; not where a proxy in front does so.
        store: Where live sessions are kept for other processes.
        name: This process's among them.
        files: Uploaded pictures; by default this process keeps its own.
        fetcher: For pictures by their addresses; by default one for `access.fetch_hosts`, if there are any.
    """

    limits = settings.limits
    fetcher = fetcher or _fetcher(settings)
    own_files = FileStore(limits.stored_files_bytes, limits.stored_file_seconds)
    files = own_files if files is None else files
    metrics = Metrics({name: one.fingerprint for name, one in settings.checkpoints.items()})
    observed = ObservedClient(client, metrics)
    sessions = LiveSessions(observed, settings, store, name)
    routers = [
        status_router(observed, settings, lambda: sessions.open),
        metrics_router(observed, metrics),
        chat_router(observed, settings, ImageSources(fetcher, files)),
        files_router(files, limits),
        live_router(sessions),
        rest_router(sessions),
        captions.captions_router(sessions),
        page_router(settings),
        documentation_router(settings, messages.__doc__ or ""),
    ]
    paths = {getattr(route, "path", "") for router in routers for route in router.routes}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await sessions.close()
        own_files.close()
        client.close()
        if fetcher is not None:
            await fetcher.close()

    app = FastAPI(
        title="casa",
        summary="Questions about pictures in OpenAI's shape, and live captions.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load scripts from a CDN
        redoc_url=None,
        middleware=[
            Middleware(ObserveMiddleware, metrics=metrics, known=lambda path: path in paths),
            Middleware(RequestMiddleware, in_headers=request_id_headers),
            *_guards(settings),
        ],
    )
    app.state.limits, app.state.sessions = settings.limits, sessions
    describe(app, settings)
    install_error_handlers(app)
    for router in routers:
        app.include_router(router)
    return app


def _fetcher(settings: ServeSettings) -> ImageFetcher | None:
    hosts, limits = settings.access.fetch_hosts, settings.limits
    return ImageFetcher(hosts, seconds=limits.fetch_seconds, at_once=limits.fetches) if hosts else None


def _guards(settings: ServeSettings) -> list[Middleware]:
    """Who may call, and how much a body may hold."""
    access, limits = settings.access, settings.limits
    ring = KeyRing(Path(access.keys)) if access.keys else None
    if ring is None and not settings.loopback_only:
        logger.warning(
            "the endpoint listens beyond this machine and asks for no API key: set deploy.access.keys"
        )
    return [
        Middleware(SiteMiddleware, access=access, loopback_only=settings.loopback_only),
        Middleware(KeyMiddleware, ring=ring),
        Middleware(
            BodyLimitMiddleware,
            limit=limits.body_bytes,
            seconds=limits.body_seconds,
            own={captions.PATH: (limits.video_bytes, limits.upload_seconds)},
            together=max(limits.bodies_bytes, limits.body_bytes),
        ),
    ]
