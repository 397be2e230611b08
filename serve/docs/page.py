"""The documentation page `/docs`, drawn from the OpenAPI description: plain HTML without scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from serve.docs.examples import examples

Schema = Mapping[str, Any]


def docs_page(document: Schema, base_url: str, model: str, live_protocol: str, keyed: bool) -> str:
    """The whole page.

    Args:
        document: The OpenAPI description.
        base_url: Address under which the reader sees the endpoint.
        model: Name of the served model, for the examples.
        live_protocol: The messages of the WebSocket `/v1/live`, as text.
        keyed: Whether the endpoint asks for API keys.
    """
    schemas = document["components"]["schemas"]
    operations = [
        (method, path, operation)
        for path, own in document["paths"].items()
        for method, operation in own.items()
    ]
    calls = "".join(
        f'<li><a href="#{_anchor(m, p)}">{m.upper()} {escape(p)}</a></li>' for m, p, _ in operations
    )
    parts = [
        f"<h1>casa <span>API</span></h1><p>{escape(document['info'].get('summary', ''))} The served model is "
        f"<strong>{escape(model)}</strong>. The same as JSON: <a href='/openapi.json'>openapi.json</a>.</p>",
        "<nav aria-label='Contents'><ul><li><a href='#examples'>Examples</a></li>"
        f"{calls}<li><a href='#live'>WebSocket /v1/live</a></li><li><a href='#objects'>Objects</a></li></ul>"
        "</nav>",
        "<h2 id='examples'>Examples</h2>",
        *(f"<h3>{escape(title)}</h3>{_code(text)}" for title, text in examples(base_url, model, keyed)),
        "<h2>Calls</h2>",
        *(_operation(method, path, operation) for method, path, operation in operations),
        f"<h2 id='live'>WebSocket /v1/live</h2>{_code(live_protocol)}",
        "<h2 id='objects'>Objects</h2>",
        *(_object(name, schemas[name]) for name in sorted(schemas)),
    ]
    return _DOCUMENT.format(body="\n".join(parts))


_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>casa · API</title>
  <link rel="icon" href="/web/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="/web/docs.css">
</head>
<body>
<header><a href="/">Live page</a></header>
<main>
{body}
</main>
</body>
</html>
"""


def _operation(method: str, path: str, operation: Schema) -> str:
    text = operation.get("description") or operation.get("summary", "")
    rows = []
    for parameter in operation.get("parameters", []):
        name = f"<code>{escape(parameter['name'])}</code> (in the {parameter['in']})"
        rows.append((name, _type(parameter["schema"]), _inline(parameter.get("description", ""))))
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        rows.append((f"body, <code>{escape(kind)}</code>", _type(content.get("schema", {})), ""))
    takes = _table(("takes", "type", ""), rows) if rows else ""
    answers = [
        (
            f"<code>{status}</code>",
            ", ".join(_answer(kind, content) for kind, content in response.get("content", {}).items()),
            _inline(response["description"]),
        )
        for status, response in operation["responses"].items()
    ]
    return (
        f"<section id='{_anchor(method, path)}'><h3><b>{method.upper()}</b> {escape(path)}</h3>"
        f"<p>{_inline(text)}</p>{takes}{_table(('status', 'answer', ''), answers)}</section>"
    )


def _answer(kind: str, content: Schema) -> str:
    if "itemSchema" in content:
        shown = f"events of {_type(content['itemSchema']['properties']['data'])}"
    else:
        shown = _type(content.get("schema", {}))
    return shown if kind == "application/json" else f"{shown} (<code>{escape(kind)}</code>)"


def _object(name: str, schema: Schema) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (
            f"<code>{escape(field)}</code>{'' if field in required else ' <small>optional</small>'}",
            _type(own),
            _inline(own.get("description", "")) + _default(own),
        )
        for field, own in schema.get("properties", {}).items()
    ]
    about = f"<p>{_inline(schema.get('description', ''))}</p>" if schema.get("description") else ""
    table = _table(("field", "type", ""), rows) if rows else f"<p>{_type(schema)}</p>"
    return f"<section id='{escape(name)}'><h3>{escape(name)}</h3>{about}{table}</section>"


def _type(schema: Schema) -> str:
    """A schema in a few words, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(map(_type, schema[several]))
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if "contentSchema" in schema:
        return _type(schema["contentSchema"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = "; ".join(f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema)
    return escape(f"{kind} ({bounds})" if bounds else str(kind))


_BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "exclusiveMaximum": "below",
    "minLength": "characters from",
    "maxLength": "characters to",
}


def _default(schema: Schema) -> str:
    if schema.get("default") in (None, ""):
        return ""
    return f" <small>default <code>{escape(json.dumps(schema['default']))}</code></small>"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def cells(kind: str, row: tuple[str, ...]) -> Iterator[str]:
        return (f"<{kind}>{cell}</{kind}>" for cell in row)

    body = "".join(f"<tr>{''.join(cells('td', row))}</tr>" for row in rows)
    return f"<table><thead><tr>{''.join(cells('th', head))}</tr></thead><tbody>{body}</tbody></table>"


def _code(text: str) -> str:
    return f"<pre tabindex='0'><code>{escape(text)}</code></pre>"


def _inline(text: str) -> str:
    """A sentence with `code` in it."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _anchor(method: str, path: str) -> str:
    return f"{method}-{re.sub(r'[^a-z0-9]+', '-', path.lower()).strip('-')}"
