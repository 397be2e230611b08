"""Base64 and ``data:`` URIs, read and written in one way by corpora, endpoint, client and pages."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from casa_core.errors import MediaError

_HEAD = re.compile(r"data:(?P<type>[^;,]*)(?P<parameters>(?:;[^;,]*)*),", re.IGNORECASE)
_UNTYPED = frozenset(("", "application/octet-stream", "binary/octet-stream"))
_SPACE = b"\t\n\f\r "


def is_data_uri(text: str) -> bool:
    """Whether a text is a data URI; the scheme's letters may be of either case."""
    return text[:5].lower() == "data:"


def to_data_uri(data: bytes, media_type: str) -> str:
    """A data URI that holds these bytes."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def from_data_uri(uri: str) -> bytes:
    """The bytes of a base64 data URI.

    The media type may be any picture's, or unknown: what the bytes are, they tell themselves. Base64 is read
    as browsers do (the *forgiving* decoding of infra.spec.whatwg.org): percent signs are undone, white space
    may stand anywhere, and the padding may be missing.

    Raises:
        MediaError: ``bad_data_uri``.
    """
    head = _HEAD.match(uri)
    if head is None:
        raise _refusal("It does not begin with data:, a media type and a comma.")
    if "base64" not in head["parameters"].lower().replace(" ", "").split(";"):
        raise _refusal(f"data:{head['type']}{head['parameters']} does not say that it is base64.")
    kind = head["type"].strip().lower()
    if not (kind.startswith("image/") or kind in _UNTYPED):
        raise _refusal(f"It says that it is {kind}, not a picture.")
    return from_base64(uri[head.end() :])


def from_base64(text: str) -> bytes:
    """The bytes that base64 stands for; see :func:`from_data_uri`.

    Raises:
        MediaError: ``bad_data_uri``.
    """
    try:
        body = unquote_to_bytes(text) if "%" in text else text.encode("ascii")
        body = body.translate(None, _SPACE).rstrip(b"=")
        # Half the time of b64decode with validate=True, which a server's pictures notice.
        return binascii.a2b_base64(body + b"=" * (-len(body) % 4), strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise _refusal(f"It does not hold valid base64: {error}.") from error


def _refusal(why: str) -> MediaError:
    return MediaError(
        "bad_data_uri",
        "The data URI cannot be read.",
        why,
        "Write it as data:image/png;base64,….",
    )
