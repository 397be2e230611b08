"""A picture as a user of transformers gives it (bytes, pixels, a path, a URL, base64) → pixels.

Only a user's own call of ``CasaProcessor`` comes here: a path opens a file and an http URL fetches one. The
endpoint fetches by rules of its own and builds samples that hold bytes: a request's strings never come here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage

from casa_core.errors import DataError, MediaError, cause
from casa_core.media.data_uri import from_base64, from_data_uri, is_data_uri
from casa_core.media.decode import decode_image, pillow_to_rgb
from casa_core.media.images import check_pixels

Rgb = NDArray[np.uint8]
Picture = bytes | str | Path | Rgb | PILImage.Image | torch.Tensor

MAX_FILE_BYTES = 256 * 2**20
"""Largest file that is read or fetched."""
FETCH_SECONDS = 30.0
"""Longest time for fetching a URL, and for each wait in it a third of that."""
_SPELLINGS = ("image", "url", "path", "base64", "image_url")
_KNOWN = "Expected bytes, a Pillow image, a path, a URL, a uint8 array (H, W, 3) or a torch tensor."


def picture_of_part(part: Mapping[str, Any], name: str) -> Any:
    """The picture that an image part of a message brings; ``None``: one that is given apart.

    Args:
        part: ``{"type": "image", "image" | "url" | "path" | "base64": …}``, or ``{"type": "image_url",
            "image_url": … or {"url": …}}``.
        name: What errors call the part.

    Returns:
        What :func:`picture_to_rgb` reads.

    Raises:
        DataError: If the part spells its picture twice, or not as its key demands.
        MediaError: If its base64 cannot be read.
    """
    given = [key for key in _SPELLINGS if part.get(key) is not None]
    if len(given) > 1:
        raise DataError(
            f"{name} gives its picture twice, as {' and '.join(map(repr, given))}.",
            "An image part shows one picture.",
            "Keep one of them, or write two parts.",
        )
    if not given:
        if part.get("type") != "image_url":
            return None
        raise DataError(
            f"{name} is an image_url part without a URL.",
            'Expected {"type": "image_url", "image_url": {"url": …}}.',
            'Write the URL there, or {"type": "image"} for a picture that is given as images=.',
        )
    (key,) = given
    value = part[key]
    if key == "image_url" and isinstance(value, Mapping):
        value = value.get("url")
    if key in ("image", "image_url") and not isinstance(value, Mapping | None):
        return value
    if key == "url" and isinstance(value, str):
        return value
    if key == "path" and isinstance(value, str | Path):
        return Path(value)
    if key == "base64" and isinstance(value, bytes):
        return _named(lambda: from_base64(value.decode("ascii", "replace")), name)
    if key == "base64" and isinstance(value, str):
        return _named(lambda: from_data_uri(value) if is_data_uri(value) else from_base64(value), name)
    raise DataError(
        f"The {key!r} of {name} is of type {type(value).__name__}.",
        "A path or URL is a text, and base64 too.",
        'Pass pixels and encoded bytes as the part\'s "image".',
    )


def picture_to_rgb(picture: Any, name: str) -> Rgb:
    """Pixels (H, W, 3) of a picture in any spelling; errors call it ``name``.

    Args:
        picture: Encoded bytes; a Pillow image; a uint8 array (H, W, 3); a torch tensor (H, W, 3) or
            (3, H, W), uint8 or floating point from 0 to 1; a path as text or ``Path``; a ``file``, ``data``,
            ``http`` or ``https`` URL.

    Raises:
        DataError: If it is something else, or a file or URL that cannot be read.
        MediaError: If its bytes are no picture that can be decoded.
    """
    if isinstance(picture, str):
        return _decoded(_of_text(picture, name), name)
    if isinstance(picture, Path):
        return _decoded(_of_file(picture, name), name)
    if isinstance(picture, bytes):
        return _decoded(picture, name)
    if isinstance(picture, PILImage.Image):
        return pillow_to_rgb(picture)
    if isinstance(picture, torch.Tensor):
        return _of_tensor(picture, name)
    if not isinstance(picture, np.ndarray):
        raise DataError(f"{name} is of type {type(picture).__name__}.", _KNOWN, "Convert it to one of these.")
    check_pixels(picture, name)
    return picture


def _decoded(data: bytes, name: str) -> Rgb:
    return _named(lambda: decode_image(data), name)


def _named(read: Callable[[], Any], name: str) -> Any:
    """What ``read`` returns; its error also tells which picture it was."""
    try:
        return read()
    except MediaError as error:
        why = f"{error.what} {error.why}".strip()
        raise MediaError(
            error.reason,
            f"{name} cannot be read as a picture.",
            why,
            error.remedy or "Pass the whole file of a picture.",
        ) from error


def _of_text(text: str, name: str) -> bytes:
    """The bytes that a path or URL leads to."""
    if is_data_uri(text):
        return _named(lambda: from_data_uri(text), name)
    scheme, separator, _ = text.partition("://")
    scheme = scheme.lower()
    if not separator:
        return _of_file(Path(text), name)
    if scheme in ("http", "https"):
        return _fetched(text, name)
    if scheme != "file":
        raise DataError(
            f"{name} is a URL of scheme {scheme!r:.40}.",
            "Files, http, https and data URLs are read.",
            "Download it, and pass its path or bytes.",
        )
    address = urlsplit(text)
    if address.netloc not in ("", "localhost"):
        raise DataError(
            f"{name} is a file URL of the host {address.netloc!r:.80}.",
            "Only this machine's files are read.",
            "Write it as file:///path, or copy the file here.",
        )
    return _of_file(Path(unquote(address.path)), name)


def _of_file(path: Path, name: str) -> bytes:
    """A regular file's bytes.

    Raises:
        DataError: If there is none, or it cannot be read.
    """
    try:
        if path.is_dir():
            raise DataError(
                f"{name}: {str(path)!r:.200} is a folder.", "A picture is a file.", "Name the file in it."
            )
        if path.is_file():
            if (size := path.stat().st_size) <= MAX_FILE_BYTES:
                return path.read_bytes()
            raise DataError(
                f"{name}: the file {str(path)!r:.200} has {size:,} bytes.",
                f"At most {MAX_FILE_BYTES:,} are read.",
                "Save the picture smaller, or pass its pixels.",
            )
    except (OSError, ValueError) as error:  # ValueError: a text with a NUL in it
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name}: the file {str(path)!r:.200} cannot be read.",
            f"{cause(error)[:300]}.",
            'Check path and permissions; base64 text belongs under "base64", or in a data: URL.',
        ) from error
    raise DataError(
        f"{name}: there is no file {str(path)!r:.200}.",
        "A text that is no URL is taken for a path.",
        'Check the path; base64 text belongs under "base64", or in a data: URL.',
    )


def _fetched(url: str, name: str) -> bytes:
    """What an http or https URL answers, within a time and a size.

    Raises:
        DataError: If it does not answer, not with a file, or with too large a one.
    """
    try:
        import httpx
    except ImportError as error:
        raise DataError(
            f"{name} is a URL, and the package httpx is not installed.",
            "It fetches http and https URLs.",
            "Run pip install httpx, or download the picture and pass its path or bytes.",
        ) from error
    shown = _without_secrets(url)
    ends = time.monotonic() + FETCH_SECONDS
    body = bytearray()
    why = ""
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=FETCH_SECONDS / 3) as answer:
            if answer.status_code != httpx.codes.OK:
                why = f"The server answered with status {answer.status_code}."
            for chunk in () if why else answer.iter_bytes():
                body += chunk
                if len(body) > MAX_FILE_BYTES:
                    why = f"It is larger than {MAX_FILE_BYTES:,} bytes."
                elif time.monotonic() > ends:
                    why = f"It took longer than {FETCH_SECONDS:g} s."
                if why:
                    break
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        why = f"{cause(error)[:300].replace(url, shown).rstrip('.')}."
    if why:
        raise DataError(
            f"{name}: {shown} cannot be fetched.",
            why,
            "Check the URL and the network, or download the picture and pass its path or bytes.",
        )
    return bytes(body)


def _without_secrets(url: str) -> str:
    """A URL as an error may show it: without user, password and query."""
    try:
        address = urlsplit(url)
        port = f":{address.port}" if address.port else ""
    except ValueError:
        return "the URL"
    return f"{address.scheme}://{address.hostname or ''}{port}{address.path}"[:200]


def _of_tensor(tensor: torch.Tensor, name: str) -> Rgb:
    found = f"a {tensor.dtype} tensor of shape {tuple(tensor.shape)}"
    last, first = tensor.ndim == 3 and tensor.shape[2] == 3, tensor.ndim == 3 and tensor.shape[0] == 3
    if last == first:
        raise DataError(
            f"{name} is {found}.",
            "Both its first and its last axis could hold red, green and blue."
            if last
            else "A tensor holds one picture: (H, W, 3) or (3, H, W).",
            "Pass it as a uint8 array (H, W, 3), or several pictures one by one.",
        )
    pixels = tensor.detach().cpu()
    pixels = pixels if last else pixels.permute(1, 2, 0)
    if pixels.is_floating_point() and pixels.numel():
        pixels = pixels.float()
        if not (float(pixels.min()) >= 0 and float(pixels.max()) <= 1):  # a NaN fails both
            raise DataError(
                f"{name} is {found} with values from {float(pixels.min()):g} to {float(pixels.max()):g}.",
                "Floating-point pixels lie between 0 and 1; normalising is done here.",
                "Undo the normalisation, or pass uint8 from 0 to 255.",
            )
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise DataError(
            f"{name} is {found}.",
            "Pixels are uint8 from 0 to 255, or floating point from 0 to 1.",
            "Convert it with tensor.to(torch.uint8).",
        )
    return np.ascontiguousarray(pixels.numpy())
