"""``casa reproduce``: a run made again in a fresh store, and compared with what it was."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from casa_core.errors import CasaError, ConfigError
from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, PlainOption, StoreOption, parse_store
from pipelines.storage.transfer import remove_tree

if TYPE_CHECKING:
    from infra.environment import Difference
    from pipelines.dag.history.lineage import Made
    from pipelines.dag.history.reproduction import Remade
    from pipelines.dag.plan import StageSpec
    from pipelines.recipe.where import Where
    from pipelines.storage.uri import Folder

STATES = frozenset({"deploy"})
"""Kinds of stages that bring about a state, and leave nothing to compare."""


RunArgument = Annotated[
    str | None,
    typer.Argument(
        help="An artifact, with all it was made of: a stage of the latest run, a folder, an s3:// URI, the "
        "beginning of a fingerprint, or train@DATE. All of the latest run if not given.",
        metavar="[RUN]",
    ),
]
IntoOption = Annotated[
    Any,
    typer.Option(
        help="Store to make it in; what is whole there is compared as it is. Without: a temporary one.",
        parser=parse_store,
        metavar="FOLDER",
    ),
]
ToleranceOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND=VALUE", help="How far a loss (a share of it), score or count may be. Repeatable."
    ),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="where.KEY=VALUE", help="Run it elsewhere than it ran. Repeatable."),
]


def reproduce(
    run: RunArgument = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the environment only; make nothing.")
    ] = False,
    into: IntoOption = None,
    tolerance: ToleranceOption = None,
    set_: WhereOption = None,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
    plain: PlainOption = False,
) -> None:
    """Make a run again in a fresh store, and compare: data byte for byte, metrics within a tolerance.

    First the environment that its manifests record is compared with the present one: code, packages, image,
    GPUs, raw data. Settings are those recorded, on a local Ray unless the run was elsewhere. The endpoint is
    left out. Ends with 1 where something is not reproduced, or with --check where a difference can change
    a result.

    Examples:

      casa reproduce                   the latest run

      casa reproduce train --check     is everything as it was when this was trained?

      casa reproduce 9c01fe --into runs-again --tolerance loss=0.02 --json
    """
    from pipelines.cli.show.reproduced import show_differences, show_remade
    from pipelines.dag.artifact import provenance
    from pipelines.dag.code_version import current_versions
    from pipelines.dag.history.reproduction import environment_differences, made_by_stages, read_tolerances

    tolerances = read_tolerances(tolerance or ())
    if into == store:
        raise ConfigError(
            f"{into} is the run's own store.",
            "Everything would be found there.",
            "Name another with `--into`.",
        )
    made = made_by_stages(_roots(run, store))
    present = provenance()
    del present["nodes"]  # those of a cluster are known once something has run there
    found = environment_differences(made, present, current_versions())
    show_differences(found, as_json=json_, what="environment")
    if check:
        raise typer.Exit(1 if any(one.is_decisive for one in found) else 0)
    with _fresh_store(into) as (folder, keep):
        where, specs = _placed(made, folder, set_ or (), is_temporary=into is None)
        manifests = _make(specs, folder, where, as_json=json_, plain=plain)
        remade = _compared(made, specs, manifests, tolerances)
        if apart := _nodes_apart(made, specs, manifests):
            show_differences(apart, as_json=json_, what="nodes")
        is_reproduced = all(one.is_reproduced for one in remade)
        if not is_reproduced:
            keep()
        show_remade(remade, tolerances, folder, as_json=json_, is_kept=into is not None or not is_reproduced)
    raise typer.Exit(0 if is_reproduced else 1)


def _roots(run: str | None, store: Folder) -> list[Made]:
    from pipelines.cli.shared.artifacts import find_artifact
    from pipelines.cli.shared.run_handle import latest_run
    from pipelines.dag.artifact import read_manifest
    from pipelines.dag.history.lineage import lineage
    from pipelines.storage.uri import open_folder

    if run is not None:
        root = lineage(find_artifact(run, store))
        is_state = root.manifest is not None and root.manifest["kind"] in STATES
        return list(root.inputs.values()) if is_state else [root]
    stages = [one for one in latest_run(store).stages if one["kind"] not in STATES]
    folders = [open_folder(stage["folder"]) for stage in stages]
    whole = [lineage(folder) for folder in folders if read_manifest(folder) is not None]
    if not whole:
        raise ConfigError(
            f"The latest run in {store} has made nothing yet.",
            "None of its stages has ended.",
            "`casa status` shows them; `casa run` goes on.",
        )
    return whole


@contextlib.contextmanager
def _fresh_store(into: Folder | None) -> Iterator[tuple[Folder, Callable[[], None]]]:
    """The store to make a run in, and a function that keeps a temporary one.

    A local Ray that was started in it is ended with the block. A temporary store stays where a stage failed.
    """
    from infra import local_ray
    from pipelines.dag.records import Records

    folder = Path(tempfile.mkdtemp(prefix="casa-reproduce-")) if into is None else into
    session, kept = Records(folder).session, into is not None
    had_ray = local_ray.find(session) is not None

    def keep() -> None:
        nonlocal kept
        kept = True

    try:
        yield folder, keep
    except CasaError:
        if Records(folder).jobs.is_dir():  # else nothing has begun
            keep()
            print(f"What was made lies in {folder}.", file=sys.stderr)
        raise
    finally:
        if not had_ray:
            local_ray.stop(session)
        if not kept:
            remove_tree(folder)


def _placed(
    made: Sequence[Made], store: Folder, overrides: Sequence[str], *, is_temporary: bool
) -> tuple[Where, list[StageSpec]]:
    """Where the last of the artifacts was made, and the stages of all, laid on another store.

    Raises:
        ConfigError: For a cluster that would not see the temporary store.
    """
    from pipelines.dag.history.reproduction import stage_specs
    from pipelines.recipe.load import load_where

    recorded = (made[-1].manifest or {})["provenance"].get("where", {})
    # Data and checkpoints of the first run would pass for those of this one.
    train = {**recorded.get("train", {}), "checkpoints": None, "track": []}
    where = load_where({**recorded, "store": str(store), "data_store": None, "train": train}, overrides)
    if is_temporary and not where.ray.is_local:
        raise ConfigError(
            f"The run was on the cluster {where.ray.address}.",
            "Every node reads and writes the store, and would see no temporary store of this machine.",
            "Name one with `--into`, or make it here: `--set where.ray.address=local`.",
        )
    values = where.model_dump(mode="json") | {"store": str(store)}
    return where, stage_specs(made, lambda earlier: {**earlier, **values})


def _make(
    specs: Sequence[StageSpec], store: Folder, where: Where, *, as_json: bool, plain: bool
) -> dict[str, dict[str, Any]]:
    """Run the stages; manifest of each by name."""
    from pipelines.cli.show.watch import JsonWatcher, LiveWatcher, PlainWatcher
    from pipelines.dag.code_version import current_versions
    from pipelines.dag.jobs import Cluster
    from pipelines.dag.plan import plan
    from pipelines.dag.records import Records
    from pipelines.dag.run import Runner
    from pipelines.recipe.stages import endpoint_of

    records, ray = Records(store), where.ray.model_dump(mode="json")
    stages = plan(specs, store, current_versions())
    live = not (as_json or plain) and sys.stdout.isatty()
    watcher = (LiveWatcher if live else JsonWatcher if as_json else PlainWatcher)(stages)
    records.prepare()
    records.write_run("reproduce", ray, endpoint_of(where), stages)
    cluster = Cluster(ray, records.session, store)
    limits = {"parallel": where.parallel_stages, "retries": where.retries}
    with watcher:
        return Runner(stages, records, cluster, watcher, **limits).run()


def _compared(
    made: Sequence[Made],
    specs: Sequence[StageSpec],
    manifests: Mapping[str, Mapping[str, Any]],
    tolerances: Mapping[Any, float],
) -> list[Remade]:
    from pipelines.dag.artifact import UNCOUNTED
    from pipelines.dag.history.reproduction import compare_remade

    return [
        compare_remade(
            spec.name,
            own.manifest or {},
            manifests[spec.name],
            UNCOUNTED.get(spec.kind, frozenset()),
            tolerances,
        )
        for own, spec in zip(made, specs, strict=True)
    ]


def _nodes_apart(
    made: Sequence[Made], specs: Sequence[StageSpec], manifests: Mapping[str, Mapping[str, Any]]
) -> list[Difference]:
    """Where the nodes that something was made on differ from those it was made again on: each pair once."""
    from infra.environment import differences

    found: dict[Difference, None] = {}
    for own, spec in zip(made, specs, strict=True):
        before, after = ((one or {})["provenance"] for one in (own.manifest, manifests[spec.name]))
        nodes = [{"nodes": one["nodes"]} if "nodes" in one else {} for one in (before, after)]
        found |= dict.fromkeys(differences(*nodes))
    return list(found)
