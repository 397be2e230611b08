"""Forms with files (multipart/form-data, RFC 7578), of bodies that are in memory already."""

from __future__ import annotations

from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from typing import NamedTuple

MOST_PARTS = 16


class Part(NamedTuple):
    """A field of a form; ``filename`` is ``None`` where it is no file."""

    name: str
    filename: str | None
    data: bytes


def parse_form(body: bytes, content_type: str) -> list[Part]:
    """The fields of a form.

    Args:
        content_type: The header, with its ``boundary``.

    Raises:
        ValueError: What breaks the rules, as a sentence.
    """
    header = Message(HTTP)
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise ValueError("Its content type names no boundary.")
    line = b"\r\n--" + boundary.encode("ascii")
    # The first boundary may stand at the very beginning, without a line break before it.
    _, *pieces = (b"\r\n" + body).split(line, MOST_PARTS + 2)
    if not pieces or not pieces[-1].startswith(b"--"):
        raise ValueError(f"It does not end with its boundary, or has more than {MOST_PARTS} fields.")
    return [_part(piece) for piece in pieces[:-1]]


def _part(piece: bytes) -> Part:
    head, separator, data = piece.partition(b"\r\n\r\n")
    if not separator or len(head) > 8192:
        raise ValueError("One of its fields has no end of its header.")
    header = BytesParser(policy=HTTP).parsebytes(head.lstrip() + b"\r\n\r\n", headersonly=True)
    disposition = header["content-disposition"]
    parameters = dict(getattr(disposition, "params", {}))
    if "name" not in parameters:
        raise ValueError("One of its fields has no name.")
    return Part(parameters["name"], parameters.get("filename"), data)
