"""The arguments of a stage function: paths and dicts, so that a test can call it without Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.storage.uri import Folder


def no_progress(done: float, total: float, message: str = "") -> None:
    """A ``progress`` that does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    """The arguments of a stage function ``run_stage(context) -> dict``.

    Attributes:
        name: The stage's name in this run, for example ``clean-vqa``.
        settings: The stage's own part of the recipe; together with the inputs it decides the output.
        placement: The recipe's ``where`` section, with ``store`` as an absolute path or a URI. Must not
            decide the output.
        inputs: Folder of each input artifact, by role, local or on S3. Read only.
        output: Folder to fill, local or on S3. May hold files of an earlier, killed attempt:
            overwrite them or resume.
        manifests: Manifest of each input, by role.
        fingerprint: Fingerprint of this stage's output.
        progress: ``progress(done, total, message="")``, any unit; cheap to call often.
    """

    name: str
    settings: dict[str, Any]
    placement: dict[str, Any]
    output: Folder
    inputs: Mapping[str, Folder] = field(default_factory=dict)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    fingerprint: str = ""
    progress: Callable[..., None] = no_progress

    def content_digest(self, role: str) -> str:
        """Digest of an input's files; empty where its manifest was not given."""
        return self.manifests.get(role, {}).get("content_digest", "")
