"""The small module in every checkpoint folder, through which transformers finds this package's classes.

With ``trust_remote_code=True`` the auto classes load a folder in a process that never imported
``casa_core.auto``; without it they refuse. The module holds no model code: it imports the installed package.
"""

from __future__ import annotations

from pathlib import Path

from casa_core.atomic import replacing

MODULE = "load_with_casa"
"""Name of the module, which transformers copies to a folder of its own and imports there."""

CODE = '''\
"""Lets transformers load this folder with trust_remote_code=True, without `import casa_core.auto`."""

try:
    from casa_core.auto import CasaConfig, CasaForConditionalGeneration, CasaProcessor
except ImportError as error:
    raise ImportError(
        f"This checkpoint needs the Python package casa: {error}. "
        "Install casa, then load the folder again."
    ) from error

__all__ = ["CasaConfig", "CasaForConditionalGeneration", "CasaProcessor"]
'''

CONFIG_AUTO_MAP = {
    "AutoConfig": f"{MODULE}.CasaConfig",
    "AutoModel": f"{MODULE}.CasaForConditionalGeneration",
    "AutoModelForImageTextToText": f"{MODULE}.CasaForConditionalGeneration",
    "AutoProcessor": f"{MODULE}.CasaProcessor",
}
"""``auto_map`` of ``config.json``."""
PROCESSOR_AUTO_MAP = {"AutoProcessor": f"{MODULE}.CasaProcessor"}
"""``auto_map`` of ``processor_config.json``."""


def write_code(folder: str | Path) -> None:
    """Write the module that both maps name."""
    with replacing(Path(folder) / f"{MODULE}.py") as partial:
        partial.write_text(CODE, encoding="utf-8")
