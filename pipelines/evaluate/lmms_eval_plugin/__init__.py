"""The plugin of lmms-eval: ``--model casa --model_args pretrained=FOLDER`` runs a checkpoint on its tasks.

The entry point group ``lmms_eval.models`` in ``pyproject.toml`` names :func:`manifest`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]


def manifest() -> ModelManifest:
    """What lmms-eval registers: the model's id, and its class, which is imported when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(model_id="casa", chat_class_path=f"{__name__}.model.Casa")
