"""The ``corpus`` stage: writes a small corpus in the layout of a large one; same seed, same bytes.

A source of the recipe with a ``make`` entry is generated here first; the readers then find exactly what they
would find in the published corpora, a few broken records included.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casa_core.errors import ConfigError
from pipelines.dag.settings import read_settings, stage_settings
from pipelines.data.generate.easy_vqa import write_easy_vqa
from pipelines.data.generate.moving_shapes import write_moving_shapes
from pipelines.data.generate.reading import write_reading
from pipelines.storage.transfer import local_output, remove_tree

if TYPE_CHECKING:
    from pipelines.dag.context import StageContext

GENERATORS: dict[str, Callable[..., dict[str, list[str]]]] = {
    "easy_vqa": write_easy_vqa,
    "moving_shapes": write_moving_shapes,
    "reading": write_reading,
}
README = "README.json"


@stage_settings
class CorpusSettings:
    """Settings of the corpus stage.

    Attributes:
        make: ``generator`` and its options, as in the recipe.
        seed: The recipe's seed.
    """

    make: dict[str, Any]
    seed: int


def run_stage(context: StageContext) -> dict[str, Any]:
    """Generates the corpus ``make`` into the output folder.

    Returns:
        Files, bytes and the generator's name.
    """
    # A killed attempt may have left files that this one would not overwrite (fewer shards, say).
    remove_tree(context.output)
    settings = read_settings(CorpusSettings, context.settings)
    with local_output(context.output) as folder:
        splits = generate(folder, settings.make, seed=settings.seed, progress=context.progress)
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {
        "generator": settings.make["generator"],
        "files": len(sizes),
        "bytes": sum(sizes),
        "splits": {split: len(names) for split, names in splits.items()},
    }


def generate(
    output: Path,
    make: dict[str, Any],
    *,
    seed: int,
    progress: Callable[[float, float, str], None] = lambda done, total, message: None,
) -> dict[str, list[str]]:
    """Writes the corpus ``make`` describes into a folder, and ``README.json`` with the files of each split.

    ``progress`` is called as ``(done, total, message)``.

    Returns:
        Annotation files of each split, relative to ``output``.

    Raises:
        ConfigError: For an unknown generator or options it refuses.
    """
    options = dict(make)
    name = options.pop("generator")
    if name not in GENERATORS:
        raise ConfigError(
            f"There is no generator named {name!r}.", "", f"Use one of: {', '.join(sorted(GENERATORS))}."
        )
    splits = GENERATORS[name](output, seed=seed, progress=progress, **options)
    (output / README).write_text(json.dumps({"make": make, "seed": seed, "splits": splits}, indent=2) + "\n")
    return splits
