"""What a stage's function is given: plain paths and dicts, so that it can be called without Ray in a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def no_progress(done: float, total: float, message: str = "") -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    """The arguments of a stage function ``run_stage(context) -> dict``.

    Attributes:
        name: The stage's name in this run, for example ``clean-vqa``.
        what: The stage's own part of the recipe; together with the inputs it decides the output.
        where: The recipe's ``where`` section, with ``store`` as an absolute path. Must not decide the output.
        inputs: Folder of each input artifact, by role. Read only.
        output: Folder to fill. May hold files of an earlier, killed attempt: overwrite them or resume.
        manifests: Manifest of each input, by role.
        fingerprint: Of this stage's output.
        progress: ``progress(done, total, message="")``, any unit; cheap to call often.
    """

    name: str
    what: dict[str, Any]
    where: dict[str, Any]
    output: Path
    inputs: dict[str, Path] = field(default_factory=dict)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    fingerprint: str = ""
    progress: Callable[..., None] = no_progress
