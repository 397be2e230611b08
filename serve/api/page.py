"""The live page at `/`, its static files, and the sample videos and pictures it offers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse

from serve.api.errors import ApiError
from serve.api.settings import ServeSettings

WEB = Path(__file__).resolve().parent.parent / "web"
# All the page needs comes from this server; blob: is the visitor's own file, data: the captured frames.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_router(settings: ServeSettings) -> APIRouter:
    """The page and its clips. Only files listed when the app starts are served, by exact name."""
    router = APIRouter(include_in_schema=False)
    assets = {path.name: path for path in sorted(WEB.iterdir()) if path.is_file()}
    clips = {path.name: path for path in _clip_files(settings.demo_clips)}
    titles = _index(settings.demo_clips, "clips.json")
    questions = _index(settings.demo_clips, "pictures.json")
    pictures = {name: settings.demo_clips / name for name in questions if settings.demo_clips}

    @router.get("/")
    async def index() -> FileResponse:
        return FileResponse(assets["index.html"], headers=HEADERS)

    @router.get("/web/{name}")
    async def asset(name: str) -> FileResponse:
        return FileResponse(_listed(assets, name), headers=HEADERS)

    @router.get("/favicon.ico")
    async def favicon() -> FileResponse:
        return FileResponse(assets["icon.svg"], headers=HEADERS)

    @router.get("/demo/clips")
    async def list_clips() -> dict[str, Any]:
        return {
            "clips": [
                {
                    "name": name,
                    "url": f"/demo/clips/{name}",
                    "title": titles.get(name, {}).get("title", Path(name).stem),
                    "query": titles.get(name, {}).get("query", ""),
                }
                for name in clips
            ]
        }

    @router.get("/demo/pictures")
    async def list_pictures() -> dict[str, Any]:
        """Held-out pictures, each with a question that the model was trained to answer."""
        return {
            "pictures": [
                {"url": f"/demo/pictures/{name}", "question": entry["question"]}
                for name, entry in questions.items()
            ]
        }

    @router.get("/demo/pictures/{name}")
    async def picture(name: str) -> FileResponse:
        return FileResponse(_listed(pictures, name), headers=HEADERS)

    @router.get("/demo/clips/{name}")
    async def clip(name: str) -> FileResponse:
        # FileResponse answers Range requests, which players need for seeking.
        return FileResponse(_listed(clips, name), media_type="video/mp4")

    return router


def _listed(files: dict[str, Path], name: str) -> Path:
    path = files.get(name)
    if path is None or not path.is_file():
        raise ApiError(404, f"There is no file named {name!r} here.", code="not_found")
    return path


def _clip_files(folder: Path | None) -> list[Path]:
    return sorted(folder.glob("*.mp4")) if folder is not None and folder.is_dir() else []


def _index(folder: Path | None, name: str) -> dict[str, dict[str, str]]:
    """Optional: file name → {"title", "query"} of clips, {"question"} of pictures."""
    path = folder / name if folder is not None else None
    return json.loads(path.read_text("utf-8")) if path is not None and path.is_file() else {}
