"""``casa adopt``: an artifact made elsewhere, checked and taken into a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from casa_core.errors import ConfigError, StoreError
from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, SetOption, StoreOption
from pipelines.cli.show.format import print_json

if TYPE_CHECKING:
    from pipelines.dag.plan import PlannedStage
    from pipelines.recipe import Recipe
    from pipelines.storage.uri import Folder

TRAIN = "train"
KINDS = ("corpus", "clean", "pack", TRAIN, "evaluate")
"""Kinds that are files, and that later stages use."""
NOT_COMPARED = frozenset({"_name_or_path", "architectures", "dtype", "transformers_version", "init"})
"""Of a checkpoint's configuration: what does not decide what its weights compute."""


def adopt(
    folder: Annotated[
        str, typer.Argument(help="An artifact of another store, or a checkpoint: a folder or an s3:// URI.")
    ],
    kind: Annotated[
        str, typer.Option("--as", metavar="KIND", help="What it is: corpus, clean, pack, train or evaluate.")
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE", help="For a checkpoint: the recipe whose train stage it takes the place of."
        ),
    ] = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Take an artifact that was made elsewhere into a store, so that recipes use it; refuse one that does not
    verify.

    An artifact is checked against its manifest, byte for byte, and keeps its fingerprint; packed data bring
    along the clean data that they refer to. A checkpoint without one is loaded, its configuration compared
    with the recipe's model, and put where the recipe's training would leave its own: later stages use it.

    Examples:

      casa adopt /mnt/theirs/pack/9f2c… --as pack

      casa adopt my-model --as train --recipe quickstart

      casa adopt s3://bucket/models/best --as train --recipe my.yaml --store s3://bucket/runs
    """
    from pipelines.dag.history.adoption import adopt_artifact
    from pipelines.dag.history.aliases import alias_of
    from pipelines.storage.uri import open_folder

    if kind not in KINDS:
        raise ConfigError(f"No {kind} artifact is adopted.", "", f"Kinds are {', '.join(KINDS)}.")
    source = open_folder(folder)
    if (source / "config.json").is_file():
        taken = [_adopt_checkpoint(source, kind, recipe, list(set_ or ()), store)]
        aliases = [""]
    else:
        found = list(adopt_artifact(source, kind, store))
        taken, aliases = [place for place, _ in found], [alias_of(manifest) for _, manifest in found]
    named = list(zip(taken, aliases, strict=True))
    if json_:
        print_json([{"artifact": str(own), "alias": alias or None} for own, alias in named])
        return
    for own, alias in named:
        print(f"{own}{f'  {alias}' if alias else ''}")
    if not taken:
        print(f"{folder} is in {store} already.")
    elif aliases[-1]:
        _show_use(source)


def _show_use(source: Folder) -> None:
    """Say so where no recipe of this code would use an artifact."""
    from pipelines.dag.artifact import read_manifest
    from pipelines.dag.code_version import current_versions

    manifest = read_manifest(source) or {}
    recorded, present = manifest["code_version"], current_versions()[manifest["kind"]]
    if recorded != present:
        print(
            f"It was made by version {recorded} of {manifest['kind']}, and recipes plan version {present}: "
            "they will make their own. Commands that take an artifact take it."
        )


def _adopt_checkpoint(
    source: Folder, kind: str, recipe: str | None, overrides: list[str], store: Folder
) -> Folder:
    from pipelines.cli.shared.run_handle import open_run
    from pipelines.dag.checkpoints import local_checkpoint
    from pipelines.dag.history.adoption import adopt_checkpoint

    if kind != TRAIN or recipe is None:
        raise ConfigError(
            f"{source} is a checkpoint without an artifact's manifest.",
            "What data it was trained on, and how, it does not hold.",
            "Use `--as train --recipe RECIPE`: the recipe whose training it takes the place of.",
        )
    opened = open_run(recipe, [*overrides, f"where.store={store}"])
    stage = next(one for one in opened.stages if one.name == TRAIN)
    with local_checkpoint(source) as local:
        parameters = _checked(str(local), opened.recipe, stage)
    return adopt_checkpoint(source, stage, parameters, store)


def _checked(folder: str, recipe: Recipe, stage: PlannedStage) -> int:
    """Parameters of a checkpoint that loads, and is of the recipe's model.

    Raises:
        StoreError: If it is of another model, or does not load.
    """
    from casa_core.weights.checkpoint import load_checkpoint
    from pipelines.train.model_config import model_config

    model, processor = load_checkpoint(folder)
    config = model.config
    expected = model_config(
        recipe.model,
        vocab_size=config.text_config.vocab_size,
        pad_token_id=config.text_config.pad_token_id,
        eos_token_id=config.text_config.eos_token_id,
    )
    given = {**_plain(config.to_dict()), "template": processor.template}
    for name, value in {**_plain(expected.to_dict()), "template": recipe.model.template}.items():
        if name in given and given[name] != value:
            raise StoreError(
                f"{folder} is not of the model of {recipe.name}.",
                f"Its {name} is {given[name]!r}, and that of the recipe's stage {stage.name} {value!r}.",
                "Name the recipe, or the settings, that it was trained with.",
            )
    return sum(one.numel() for one in model.parameters())


def _plain(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted name → value of everything that decides what weights compute."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in NOT_COMPARED:
            continue
        if isinstance(value, dict):
            found |= _plain(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found
