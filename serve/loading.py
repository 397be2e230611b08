"""What a replica loads: its checkpoint's engine before it is ready, those of others when they are asked for.
Checkpoints that lie elsewhere are copied here."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from casa_core.engine.protocol import LoopProtocol
from casa_core.engine.settings import EngineSettings
from casa_core.errors import ConfigError
from serve.api.settings import Limits, ServeSettings
from serve.engine_pool import EnginePool

logger = logging.getLogger("casa.serve")


def load_pool(settings: ServeSettings, copies: ExitStack) -> EnginePool:
    """The engines of a process, the settings' own loaded; errors as :func:`load_engine`.

    Args:
        copies: Holds the copies of further checkpoints until it is closed.
    """

    @cache
    def folder(name: str) -> Path:
        checkpoint = settings.checkpoints[name]
        if not checkpoint.digest:
            return Path(checkpoint.folder)
        fetch = _named(settings.fetch, "function")
        return copies.enter_context(fetch(checkpoint.folder, checkpoint.digest))

    def load(name: str) -> LoopProtocol:
        return load_engine(settings.model_copy(update={"model_folder": folder(name)}))

    return EnginePool(load, list(settings.checkpoints), settings.models_per_engine)


def load_engine(settings: ServeSettings) -> LoopProtocol:
    """Import the engine class that the settings name and load the checkpoint with it, sized by their limits.

    Steps that are to be compiled are: Serve calls a replica ready once this is done.

    Raises:
        ConfigError: The name cannot be imported, or what ``compile`` or ``quantize`` need is missing here.
    """
    own = replace(engine_settings(settings.limits), graphs=settings.graphs)
    options: dict[str, Any] = {"settings": own}
    if settings.dtype != "auto":
        from casa_core.dtypes import DTYPES  # late, as all that loads torch: an endpoint never does

        options["dtype"] = DTYPES[settings.dtype]
    if settings.quantize != "none":
        options["quantize"] = settings.quantize
    if settings.compile:
        options["compile"] = True
    engine = _named(settings.engine, "engine").from_pretrained(settings.model_folder, **options)
    if settings.compile or settings.graphs:
        logger.info("compiling or recording decode steps; the replica is ready afterwards")
        logger.info("decode steps are ready, after %.0f s", engine.warm_up())
    return engine


def engine_settings(limits: Limits) -> EngineSettings:
    """The size and shares of an engine behind the API."""
    return EngineSettings(
        slots=limits.sessions + limits.answers,
        answer_slots=limits.answers,
        waiting=limits.waiting_requests,
        queued_frames=limits.queued_frames,
        max_pixels=limits.frame_pixels,
        threads=True,
    )


def _named(path: str, what: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"The {what} {path!r} cannot be loaded.", str(error), "Name it as module:name."
        ) from error


def with_local_folders(
    settings: dict[str, Any], copies: ExitStack, names: Sequence[str] = ("model_folder", "demo_clips")
) -> dict[str, Any]:
    """The settings with paths of this machine for the folders that are to be copied to it.

    Args:
        settings: `ServeSettings` as JSON.
        copies: Holds the copies until it is closed.
        names: The settings of those that are needed.
    """
    digests = {name: digest for name, digest in settings.get("digests", {}).items() if name in names}
    if not digests:
        return settings
    fetch = _named(settings["fetch"], "function")
    folders = {name: copies.enter_context(fetch(settings[name], digest)) for name, digest in digests.items()}
    return {**settings, **folders}
