"""A trained model in three lines, without Ray: load a checkpoint, ask it, let it caption a video.

    import casa

    model = casa.load("path/to/model")
    print(model.ask("cat.png", "What is in the image?"))

Nothing heavy is imported before it is used: the ``casa`` command starts here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casa_core.loaded import LoadedModel, load

__all__ = ["LoadedModel", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'casa' has no attribute {name!r}")
    from casa_core import loaded

    return getattr(loaded, name)
