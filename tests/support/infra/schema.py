"""Whether an object has the fields and types of a data class, such as those made from Kubernetes' OpenAPI."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, Union


def problems(value: Any, kind: Any, where: str = "") -> Iterator[str]:
    """What is wrong with a value: unknown and missing fields, values of other types.

    Args:
        kind: A data class, or a type of one's fields.
        where: Path of the value, for the messages.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        yield from _of_class(value, kind, where)
    elif origin in (Union, types.UnionType):
        found = [list(problems(value, one, where)) for one in arguments]
        if all(found):
            yield from max(found, key=len) if isinstance(value, dict) else found[0]
    elif origin is Literal:
        if value not in arguments:
            yield f"{where} is {value!r}, none of {', '.join(arguments)}"
    elif origin is list:
        if not isinstance(value, list):
            yield f"{where} is no list"
            return
        for index, one in enumerate(value):
            yield from problems(one, *arguments, f"{where}/{index}")
    elif origin is dict:
        for key, one in value.items():
            yield from problems(one, arguments[1], f"{where}/{key}")
    elif kind is not Any and type(value) is not kind:
        yield f"{where} is {value!r}, no {kind.__name__}"


def _of_class(value: Any, kind: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where} is {value!r}, no {kind.__name__}"
        return
    hints = _hints(kind)
    fields = {one.metadata.get("json", one.name): one for one in dataclasses.fields(kind)}
    for name in value.keys() - fields.keys():
        yield f"{where}/{name} is no field of {kind.__name__}"
    for name, field in fields.items():
        if name in value:
            yield from problems(value[name], hints[field.name], f"{where}/{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            yield f"{where} lacks {name}"


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
