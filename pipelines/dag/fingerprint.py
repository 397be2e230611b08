"""Fingerprints: equal for equal work, on any machine, on any day.

A fingerprint is the SHA-256 of the canonical JSON of a stage's kind, its *what*, the fingerprints of its
inputs and the version of its code. Values that would differ between two equal runs are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from casa_core.errors import ConfigError

LENGTH = 40
"""Hex digits kept: 160 bits."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and one spelling for every value.

    Raises:
        ConfigError: For a value that is not stable across runs or machines; names where it stands.
    """
    return json.dumps(
        _stable(value, ""), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def stage_fingerprint(
    kind: str, what: Mapping[str, Any], inputs: Mapping[str, str], code_version: str
) -> str:
    """Fingerprint of a stage's output; ``inputs`` maps roles to the inputs' fingerprints.

    The stage's *name* is not part of it: two runs may name it differently.
    """
    identity = {"kind": kind, "what": what, "inputs": inputs, "code": code_version}
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:LENGTH]


def _stable(value: Any, path: str) -> Any:
    # `type`, not isinstance: subclasses (numpy's float64, an IntEnum) would be spelt by their own rules.
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is str:
        return _stable_text(value, path)
    if type(value) is float:
        if math.isfinite(value):
            # 0.0 and -0.0 are equal, and so should be what they lead to.
            return value + 0.0
        raise _refused(
            path, value, "NaN and infinity have no JSON and do not compare", "use a finite number or null"
        )
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise _refused(f"{path}.{key}", key, "JSON has text keys only", "use a string as the key")
        return {_stable_text(key, path): _stable(item, f"{path}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return [_stable(item, f"{path}.{index}") for index, item in enumerate(value)]
    raise _refused(path, value, *_why_unstable(value))


def _stable_text(value: str, path: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _refused(path, value, "a lone surrogate has no UTF-8", "use valid text")
    for folder in {tempfile.gettempdir(), "/tmp", "/var/tmp", "/var/folders", "/dev/shm"}:
        if value == folder or value.startswith(folder.rstrip("/") + "/"):
            why = "a temporary path means something else, or nothing, on another day"
            raise _refused(
                path, value, why, "refer to the file by its content, or put the path under `where`"
            )
    return value


def _why_unstable(value: Any) -> tuple[str, str]:
    if isinstance(value, set | frozenset):
        return "the order of a set differs from process to process", "use a sorted list"
    if isinstance(value, PurePath):
        return "paths are spelt differently from system to system", "use str(path), relative to the run"
    if callable(value):
        return "a function's identity is its address in memory", "name it, as 'package.module:function'"
    if isinstance(value, bytes | bytearray):
        return "bytes have no JSON", "use their SHA-256 as hex"
    if hasattr(value, "isoformat"):
        return "dates and times are written in many ways, and the time of a run is not part of it", (
            "use an ISO-8601 string if it decides the result, or leave it out"
        )
    if hasattr(value, "tolist"):
        return "array and scalar types differ between libraries", "use .tolist() or .item()"
    return f"{type(value).__name__} has no canonical JSON", "use str, int, float, bool, None, list or dict"


def _refused(path: str, value: Any, why: str, remedy: str) -> ConfigError:
    where = path.lstrip(".") or "the value"
    return ConfigError(f"{where} = {value!r:.80} cannot be part of a fingerprint.", why, remedy)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
