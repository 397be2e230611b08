"""/v1/files: pictures that are uploaded once, and named in chat calls by their ids."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from fastapi import APIRouter, Request

from casa_core.errors import MediaError
from casa_core.media.decode import image_header
from serve.api.errors import ApiError, bad_request, invalid_image
from serve.api.responses import DeletedFile, FileObject
from serve.api.settings import Limits
from serve.files.multipart import parse_form
from serve.files.store import Files, StoredFile

PURPOSES = ("vision", "user_data")
_ID = re.compile(r"[\w-]{1,64}")
_BODY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"type": "string", "enum": list(PURPOSES)},
        },
    }
}
_ACCEPTED = {"required": True, "content": {"multipart/form-data": _FORM, "image/*": _BODY}}


def files_router(store: Files, limits: Limits) -> APIRouter:
    """The routes over uploaded pictures."""
    router = APIRouter()

    @router.post("/v1/files", response_model=FileObject, openapi_extra={"requestBody": _ACCEPTED})
    async def upload(request: Request) -> dict[str, Any]:
        """Keep a picture for some minutes; its id is the `url` of an `image_url` in chat calls.

        It comes as a form, as OpenAI's clients send it, or as the body itself with its own content type.
        """
        kind, body = request.headers.get("content-type", ""), await request.body()
        name, data = await asyncio.to_thread(_uploaded, body, kind, limits)
        return _object(store, await store.put(data, name))

    @router.get("/v1/files/{file_id}", response_model=FileObject)
    async def show(file_id: str) -> dict[str, Any]:
        """What is kept under an id, which lasts anew from now."""
        return _object(store, await stored(store, file_id))

    @router.delete("/v1/files/{file_id}", response_model=DeletedFile)
    async def delete(file_id: str) -> dict[str, Any]:
        """Forget a picture."""
        file = await stored(store, file_id)
        return {"id": file.id, "object": "file", "deleted": await store.delete(file.id)}

    return router


async def stored(store: Files, file_id: str, param: str = "file_id") -> StoredFile:
    """An uploaded picture.

    Raises:
        ApiError: 404 for one that is not kept.
    """
    if (found := await store.get(file_id)) is not None:
        return found
    shown = file_id if _ID.fullmatch(file_id) else "of this id"
    raise ApiError(
        404,
        f"No file {shown} is kept here. Files are kept for {store.seconds:g} seconds after their last use "
        "at most: upload it again, or send it as a data URI.",
        code="file_not_found",
        param=param,
    )


def _uploaded(body: bytes, content_type: str, limits: Limits) -> tuple[str, bytes]:
    """Name and bytes of an uploaded picture, its header checked."""
    kind = content_type.split(";")[0].strip().lower()
    name, data = "", body
    if kind == "multipart/form-data":
        name, data = _from_form(body, content_type)
    elif not kind.startswith("image/"):
        raise ApiError(
            415,
            f"The header content-type is {kind[:40]!r}: send a form (multipart/form-data) with a `file`, or "
            "the picture itself as image/png, image/jpeg or the like.",
            code="unsupported_media_type",
        )
    try:
        image_header(data, max_pixels=limits.image_pixels)
    except MediaError as error:
        raise invalid_image(error, "file") from error
    return name[:255], data


def _from_form(body: bytes, content_type: str) -> tuple[str, bytes]:
    try:
        parts = parse_form(body, content_type)
    except ValueError as error:
        raise ApiError(400, f"The form cannot be read. {error}", code="invalid_form") from error
    fields = {part.name: part for part in parts}
    if unknown := set(fields) - {"file", "purpose"}:
        name = min(unknown)[:40]
        raise ApiError(400, f"Unsupported field: {name!r}.", code="unsupported_parameter", param=name)
    if "file" not in fields:
        raise ApiError(400, "The form has no `file`.", code="missing_required_parameter", param="file")
    purpose = fields["purpose"].data.decode("utf-8", "replace") if "purpose" in fields else PURPOSES[0]
    if purpose not in PURPOSES:
        raise bad_request(f"Files are kept for {' or '.join(PURPOSES)} only.", "purpose")
    # Half a character of a name would break the answer.
    name = (fields["file"].filename or "").encode("utf-8", "replace").decode()
    return name, fields["file"].data


def _object(store: Files, file: StoredFile) -> dict[str, Any]:
    """OpenAI's description of a file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": len(file.data),
        "created_at": file.created,
        "expires_at": int(time.time() + store.seconds),
        "filename": file.name,
        "purpose": PURPOSES[0],
        "status": "processed",
    }
