"""Writes docs/reference/: every command and option, every key of a recipe, the HTTP API, every metric.

python -m docs.reference    # writes the pages anew; a test fails when one is stale
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "reference"
BY_HAND = "Written by `python -m docs.reference` from the code.\n"


def commands() -> str:
    """The command line, a heading per command."""
    import typer

    from pipelines.cli.app import app

    lines = ["# Commands", "", BY_HAND]
    for words, command in _leaves(typer.main.get_command(app), ("casa",)):
        named = [each for each in command.params if each.param_type_name == "argument"]
        usage = " ".join([*words, *(_argument(each) for each in named)])
        lines += [
            f"## {' '.join(words)}",
            "",
            "```text",
            f"{usage} [OPTIONS]",
            "```",
            "",
            _text(command.help),
            "",
        ]
        rows = [
            (", ".join(f"`{name}`" for name in (*each.opts, *each.secondary_opts)), _cell(each.help or ""))
            for each in command.params
            if each.param_type_name == "option" and not each.hidden and each.name != "help"
        ]
        if rows:
            lines += [*_table(("option", "what it does"), rows), ""]
    return "\n".join(lines)


def recipe() -> str:
    """Keys of a recipe, a heading per section."""
    from pipelines.recipe import Recipe

    schema = Recipe.model_json_schema()
    lines = ["# Recipe", "", BY_HAND, "A key is set in the file, or with `--set data.max_failures=0.05`.", ""]
    for path, section in _sections(schema, schema["$defs"], "", set()):
        lines += [f"## {path or 'At the top'}", "", _text(section.get("description", "")), ""]
        rows = [
            (f"`{name}`", _type(key, schema["$defs"]), _default(key), _cell(_described(key, schema["$defs"])))
            for name, key in section["properties"].items()
        ]
        lines += [*_table(("key", "type", "default", "what it is"), rows), ""]
    return "\n".join(lines)


def http() -> str:
    """Routes of the endpoint."""
    from casa_core.engine.client import EngineClient
    from serve.asgi import build_app
    from tests.support.serve.fakes import FakeEngine
    from tests.support.serve.server import settings_with

    client = EngineClient(FakeEngine())
    try:
        described = build_app(client, settings_with()).openapi()["paths"]
    finally:
        client.close()
    rows = [
        (f"`{method.upper()}`", f"`{path}`", _cell(_first(each.get("description") or each["summary"])))
        for path, methods in described.items()
        for method, each in methods.items()
    ]
    rows.append(("`WS`", "`/v1/live`", "A live session: frames in, words out ([serving.md](../serving.md))."))
    about = "The endpoint describes itself in full at `/openapi.json`, and for readers at `/docs`."
    return "\n".join(["# HTTP API", "", BY_HAND, about, "", *_table(("", "path", "what it does"), rows), ""])


def metrics() -> str:
    """What `/metrics` of a replica exports."""
    from prometheus_client.parser import text_string_to_metric_families

    from casa_core.engine.load import LoadSnapshot
    from serve.observe.metrics import Metrics

    found = text_string_to_metric_families(Metrics({"model": "0"}).render(LoadSnapshot(slots=1)))
    rows = [
        (f"`{family.name}`", family.type, _cell(family.documentation))
        for family in sorted(found, key=lambda family: family.name)
    ]
    return "\n".join(["# Metrics", "", BY_HAND, *_table(("name", "type", "what it counts"), rows), ""])


PAGES = {"commands.md": commands, "recipe.md": recipe, "http.md": http, "metrics.md": metrics}


def _leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, each in command.commands.items():
        yield from _leaves(each, (*words, name))


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _sections(
    schema: Mapping[str, Any], known: Mapping[str, Any], path: str, seen: set[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A section, then those inside it; one that stands in several places is listed at the first."""
    yield path, schema
    for name, key in schema["properties"].items():
        for reference in _references(key):
            inner = known[reference]
            if "properties" in inner and reference not in seen:
                seen.add(reference)
                below = f"{path}.{name}".strip(".")
                yield from _sections(
                    inner, known, f"{below}.NAME" if "additionalProperties" in str(key) else below, seen
                )


def _references(key: Any) -> list[str]:
    return list(dict.fromkeys(re.findall(r"#/\$defs/(\w+)", str(key))))


def _type(key: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    if "$ref" in key:
        name = key["$ref"].rpartition("/")[2]
        inner = known[name]
        return "section" if "properties" in inner else _type(inner, known)
    if "anyOf" in key or "oneOf" in key:
        members = (_type(each, known) for each in key.get("anyOf") or key["oneOf"])
        return " or ".join(dict.fromkeys(members))
    if "enum" in key:
        return ", ".join(f"`{value}`" for value in key["enum"])
    if "const" in key:
        return f"`{key['const']}`"
    kind = {"null": "nothing", "object": "mapping", "array": "list"}.get(
        key.get("type", ""), key.get("type", "any")
    )
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = " ".join(f"{sign} {key[name]:g}" for name, sign in bounds.items() if name in key)
    return f"{kind} {limits}".strip()


def _default(key: Mapping[str, Any]) -> str:
    return f"`{key['default']}`" if key.get("default") not in (None, "", [], {}) else ""


def _described(key: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    inner = [known[name].get("description", "") for name in _references(key)]
    return key.get("description") or next(filter(None, inner), "")


def _first(text: str) -> str:
    """The first sentence."""
    return re.split(r"(?<=\.)\s", text.strip(), maxsplit=1)[0]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *rows)]


def _text(docstring: str | None) -> str:
    """A docstring as Markdown: what is indented under Examples is code."""
    text = inspect.cleandoc(docstring or "").replace("\b", "").replace("``", "`")
    before, mark, examples = text.partition("Examples:\n")
    if not mark:
        return text.strip()
    code = "\n".join(line.strip() for line in examples.splitlines() if line.strip())
    return f"{before.strip()}\n\n```sh\n{code}\n```"


def _cell(text: str) -> str:
    return " ".join(re.sub(r"\[/?[a-z]+\]", "", text).split()).replace("|", "\\|").replace("``", "`")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, write in PAGES.items():
        (FOLDER / name).write_text(write(), encoding="utf-8")
        print(FOLDER / name)
