"""Turning pydantic's complaints about a recipe into ones that help: path, what was expected, closest name."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from casa_core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Problem:
    """One setting that cannot work: where it stands, and what, why and remedy."""

    path: str
    what: str
    why: str
    remedy: str
    means: str = ""

    def reason(self) -> str:
        """Why, followed by what the setting is for."""
        return f"{self.why} ({self.means.rstrip('.')})" if self.means else self.why


def explain(error: ValidationError, values: Any, model: type[BaseModel], where: str) -> ConfigError:
    """One error for everything that is wrong with ``values``: what ``model`` refused, in words of the recipe.

    ``where`` names what was read, for example "recipe quickstart".
    """
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        keys = _real_keys(detail, values)
        problem = _describe(detail, keys, model)
        # The members of a union each complain about the same value; their expectations belong together.
        if not problem.remedy and problem.path:
            problem = replace(problem, remedy=f"Correct it in the recipe, or with `--set {problem.path}=…`.")
        if (earlier := problems.get(problem.path)) and detail["type"] != "extra_forbidden":
            known = earlier.why.split(" or ")
            why = earlier.why if problem.why in known else f"{earlier.why}, or {problem.why}"
            problem = replace(earlier, why=why)
        problems[problem.path] = problem
    found = list(problems.values())
    if len(found) == 1:
        return ConfigError(f"In {where}: {found[0].what.rstrip('.')}.", found[0].reason(), found[0].remedy)
    return ConfigError(
        f"In {where}: {len(found)} settings cannot work.",
        "\n".join(f"\n  • {p.what}\n    {p.reason()}" for p in found),
        "; ".join(dict.fromkeys(p.remedy.rstrip(".") for p in found if p.remedy)) + ".",
    )


def setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of every setting of a model; ``<name>`` stands for a name of the user's choice."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path
        for sub, infix in _sections(field.annotation):
            yield from setting_names(sub, f"{path}.{infix}")


def _real_keys(detail: ErrorDetails, values: Any) -> list[str]:
    """The keys of an error's location that stand in ``values``, without pydantic's names of union members."""
    keys: list[str] = []
    cursor: Any = values
    location = detail["loc"]
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        if isinstance(cursor, list):
            cursor = dict(enumerate(cursor))
        if isinstance(cursor, dict) and part in cursor:
            cursor = cursor[part]
        elif not (is_last and detail["type"] == "missing"):
            continue
        keys.append(str(part))
    return keys


def _describe(detail: ErrorDetails, keys: list[str], model: type[BaseModel]) -> Problem:
    path = ".".join(keys)
    kind = detail["type"]
    if kind == "extra_forbidden":
        return _unknown(path, keys, model)
    field = _field(model, keys)
    annotation = field.annotation if field is not None else _annotation(model, keys)
    means = field.description or "" if field is not None else ""
    if kind == "missing":
        return Problem(path, f"`{path}` is missing.", "it has no default", f"add `{path}`", means)
    if kind == "value_error":
        reason = str(detail["ctx"]["error"]) if "ctx" in detail else detail["msg"]
        why, _, remedy = reason.rpartition("; ")  # Our own messages end with the remedy.
        what = f"`{path}` cannot work." if path else "The settings do not fit together."
        return Problem(path, what, why or remedy, remedy if why else "")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(detail.get("ctx", {}).get("discriminator", "")).strip("'")
        choices = [c for sub, _ in _sections(annotation) for c in _choices(sub, tag)]
        wrong = detail["input"].get(tag) if isinstance(detail["input"], dict) else detail["input"]
        return _wrong_choice(f"{path}.{tag}", _shown(wrong), choices, "")
    given = _shown(detail["input"])
    if kind == "literal_error" and (choices := _literals(annotation)):
        return _wrong_choice(path, given, choices, means)
    if kind == "model_type":
        names = ", ".join(_siblings(model, keys))
        return Problem(path, f"`{path}` = {given} cannot work.", f"expected a section of: {names}", "", means)
    expected = re.sub(r"^Input should be (a valid )?", "expected ", detail["msg"]).replace(
        "List should", "it should"
    )
    return Problem(path, f"`{path}` = {given} cannot work.", expected, "", means)


def _unknown(path: str, keys: list[str], model: type[BaseModel]) -> Problem:
    parent = ".".join(keys[:-1])
    siblings = sorted(_siblings(model, keys[:-1]))
    names = list(setting_names(model))

    def sibling(cutoff: float) -> list[str]:
        close = difflib.get_close_matches(keys[-1], siblings, n=1, cutoff=cutoff)
        return [".".join([*keys[:-1], name]) for name in close]

    # A slip of the pen here, then the very name in another section, then what is less alike.
    elsewhere = [name for name in names if name.rsplit(".", 1)[-1] == keys[-1]]
    close = (
        sibling(0.8) or elsewhere or sibling(0.6) or difflib.get_close_matches(path, names, n=1, cutoff=0.6)
    )
    remedy = f"did you mean `{close[0]}`?" if close else "use one of these names, or remove it"
    section = f"`{parent}` takes" if parent else "a recipe takes"
    return Problem(path, f"There is no setting `{path}`.", f"{section}: {', '.join(siblings)}", remedy)


def _wrong_choice(path: str, given: str, choices: list[Any], means: str) -> Problem:
    close = difflib.get_close_matches(given.strip("'"), [str(c) for c in choices], n=1, cutoff=0.6)
    expected = f"expected {' or '.join(repr(c) for c in choices)}"
    remedy = f"did you mean `{close[0]}`?" if close else ""
    return Problem(path, f"`{path}` = {given} cannot work.", expected, remedy, means)


def _siblings(model: type[BaseModel], keys: list[str]) -> set[str]:
    if not keys:
        return set(model.model_fields)
    field = _field(model, keys)
    # Below a free name (a source) the section is that of the mapping's values.
    holder = field.annotation if field is not None else _annotation(model, keys)
    return {name for sub, _ in _sections(holder) for name in sub.model_fields}


def _field(model: type[BaseModel], keys: list[str]) -> FieldInfo | None:
    """The field at a path; ``None`` for an element of a list or mapping, or a path that does not exist."""
    holders: list[type[BaseModel]] = [model]
    field: FieldInfo | None = None
    for key in keys:
        named = next((h.model_fields[key] for h in holders if key in h.model_fields), None)
        if named is None and field is None:
            return None
        previous, field = field, named
        holders = [sub for sub, _ in _sections((named or previous).annotation)]  # type: ignore[union-attr]
    return field


def _annotation(model: type[BaseModel], keys: list[str]) -> Any:
    """The annotation that governs a path, through free names of mappings."""
    field = None
    for depth in range(len(keys), 0, -1):
        field = _field(model, keys[:depth])
        if field is not None:
            return field.annotation
    return None


def _sections(annotation: Any) -> list[tuple[type[BaseModel], str]]:
    """Models inside an annotation, each with the ``<name>.`` that a mapping puts before its settings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, "")]
    origin = get_origin(annotation)
    if origin is Annotated:
        return _sections(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [found for member in get_args(annotation) for found in _sections(member)]
    if origin is dict:
        return [(sub, f"<name>.{infix}") for sub, infix in _sections(get_args(annotation)[1])]
    return []


def _literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for member in typing.get_args(annotation) for value in _literals(member)]


def _choices(model: type[BaseModel], name: str) -> list[Any]:
    field = model.model_fields.get(name)
    return _literals(field.annotation) if field is not None else []


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
