"""Which foreign tensors of a decoder layer are a fusion layer's: by module, by shape, and by the letters of
their names where several shapes are equal.

Names here are relative to the decoder layer on the foreign side, and to the fusion layer on ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from casa_core.fusion.layers import PROJECTIONS
from casa_core.weights.files import Shape

WORDS = {
    "q_proj": {"q", "query", "queries", "wq"},
    "k_proj": {"k", "key", "keys", "wk"},
    "v_proj": {"v", "value", "values", "wv"},
    "o_proj": {"o", "out", "output", "wo"},
    "image_norm": {"image", "images", "visual", "vision", "media", "kv", "y"},
    "text_norm": {"text", "q", "query", "x"},
    "gate_proj": {"gate"},
    "gate_alpha": {"gate", "alpha"},
}
"""Words in a module's name that suggest a role."""


@dataclass(slots=True)
class _Module:
    """Tensors of one foreign module that may hold q, k, v and o."""

    role_of: dict[str, str] = field(default_factory=dict)  # role → its module, relative to the layer
    doubts: list[str] = field(default_factory=list)


def find_projections(
    wanted: Mapping[str, Shape], extra: Mapping[str, Shape], module: str | None
) -> tuple[dict[str, str], list[str]]:
    """Find q, k, v and o, all in one module.

    Args:
        wanted: Our tensors, ``q_proj.weight`` and so on; empty where projections are shared.
        extra: Tensors of the layer that are not the backbone's.
        module: The module that holds them, where the caller says so.

    Returns:
        Our name → theirs, empty unless all are found; and why not.
    """
    if not wanted:
        return {}, []
    candidates: dict[str, list[str]] = {}
    for name, shape in extra.items():
        if name.endswith(".weight") and len(shape) == 2:
            parent, _, leaf = name.removesuffix(".weight").rpartition(".")
            candidates.setdefault(parent, []).append(leaf)
    if module is not None:
        candidates = {parent: leaves for parent, leaves in candidates.items() if parent == module}
    read = {parent: _read_module(parent, leaves, wanted, extra) for parent, leaves in candidates.items()}
    whole = [
        parent
        for parent, found in read.items()
        if len(found.role_of) == len(PROJECTIONS) and not found.doubts
    ]
    if len(whole) > 1:
        return {}, [f"q, k, v and o are in {' and in '.join(sorted(whole))}: choose one with where="]
    if not whole:
        doubts = [doubt for found in read.values() for doubt in found.doubts]
        place = "no module besides self-attention" if module is None else f"no {module}"
        return {}, doubts or [f"{place} holds {', '.join(PROJECTIONS)}"]
    return _with_biases(read[whole[0]].role_of, wanted, extra)


def _read_module(
    parent: str, leaves: list[str], wanted: Mapping[str, Shape], extra: Mapping[str, Shape]
) -> _Module:
    """Each role's module inside ``parent``, as far as shapes and names show it."""
    found = _Module()
    for leaf in leaves:
        name = f"{parent}.{leaf}" if parent else leaf
        shape = extra[f"{name}.weight"]
        fitting = {role for role in PROJECTIONS if wanted[f"{role}.weight"] == shape}
        named = {role for role in PROJECTIONS if WORDS[role] & _words(leaf)}
        roles = fitting & named if named else fitting
        if len(roles) == 1:
            role = roles.pop()
            if role in found.role_of:
                found.doubts.append(f"{found.role_of[role]} and {name} both look like {role}")
            found.role_of[role] = name
        elif named and not roles:
            needed = wanted[f"{min(named)}.weight"]
            found.doubts.append(f"{name} {shape} is named like {min(named)}, which needs {needed}")
        elif fitting:
            listed = ", ".join(sorted(roles))
            found.doubts.append(f"{name} {shape} could be {listed}: its name does not say which")
    if found.role_of or found.doubts:
        missing = [role for role in PROJECTIONS if role not in found.role_of]
        if missing and not found.doubts:
            found.doubts.append(f"{parent or 'the layer'} holds no {', '.join(missing)}")
    return found


def _words(leaf: str) -> set[str]:
    return set(re.split(r"[^a-z]+", leaf.lower()))


def _with_biases(
    role_of: Mapping[str, str], wanted: Mapping[str, Shape], extra: Mapping[str, Shape]
) -> tuple[dict[str, str], list[str]]:
    """All tensors of the four modules."""
    taken: dict[str, str] = {}
    problems: list[str] = []
    for name, shape in wanted.items():
        role, _, kind = name.partition(".")
        source = f"{role_of[role]}.{kind}"
        if extra.get(source) == shape:
            taken[name] = source
        else:
            problems.append(f"{source} is {extra.get(source, 'missing')}; {name} needs {shape}")
    return ({}, problems) if problems else (taken, [])


def pick(wanted: Mapping[str, Shape], extra: Mapping[str, Shape]) -> tuple[dict[str, str], list[str]]:
    """Find norms and gates: by shape, and by name where several have it.

    Returns:
        Our name → theirs, and which were not found or not clearly.
    """
    taken: dict[str, str] = {}
    problems: list[str] = []
    for name, shape in wanted.items():
        module, _, kind = name.partition(".")
        ending = f".{kind}" if kind else ""
        fitting = [n for n, other in extra.items() if other == shape and n.endswith(ending)]
        rivals = sum(other == shape and n.partition(".")[2] == kind for n, other in wanted.items())
        if len(fitting) != 1 or rivals > 1:
            words = WORDS[module]
            fitting = [
                n for n in fitting if words & set().union(*map(_words, n.removesuffix(ending).split(".")))
            ]
        if len(fitting) == 1:
            taken[name] = fitting[0]
        elif fitting:
            problems.append(f"{name} could be {' or '.join(sorted(fitting))}")
        else:
            problems.append(f"nothing of the shape {shape} can be {name}")
    return taken, problems
