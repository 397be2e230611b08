"""``casa submit``: a run whose runner is a job of the cluster, so that this machine may leave."""

from __future__ import annotations

import shlex
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, SetOption, StoreOption
from pipelines.cli.show.format import print_json

if TYPE_CHECKING:
    from pipelines.cli.shared.submission import Submission
    from pipelines.dag.jobs import Cluster
    from pipelines.dag.records import Records
    from pipelines.storage.uri import Folder


class Command(StrEnum):
    """The command whose work the run does."""

    run = "run"
    train = "train"
    prepare = "prepare"


def submit(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's name or a YAML file; none to go on with the run that --name has.",
            metavar="RECIPE",
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="The cluster's dashboard, http://head:8265: where.ray.address.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run, to come back to it; by default the recipe's.")
    ] = None,
    command: Annotated[
        Command, typer.Option("--do", help="All of it, or no further than that.")
    ] = Command.run,
    set_: SetOption = None,
    store: StoreOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show what it prints; Ctrl-C leaves it running.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Hand a run to a cluster and leave: its runner is a Ray job there, its state lies in the store.

    The same command again, from any machine, finds it working, or goes on where it was: after it failed,
    after `casa stop`, on a cluster whose head was lost. Without RECIPE it goes on with the run that the store
    has under --name. This project's code is sent along.

    Examples:

      casa submit casa-helium1-before --address http://head:8265 --set where.store=s3://bucket/runs

      casa submit --name casa-helium1-before --store s3://bucket/runs       from another machine

      casa submit quickstart --follow                                       on a Ray head of this machine

      casa status --store s3://bucket/runs

      casa logs run --follow --store s3://bucket/runs
    """
    from pipelines.cli.shared.submission import submit_runner
    from pipelines.dag.jobs import Cluster

    if recipe is not None:
        given = [f"where.ray.address={address}"] if address else []
        given += [f"where.store={store}"] if store is not None else []
        submission, records = _asked(recipe, name, command.value, (*(set_ or ()), *given))
    else:
        submission, records = _recorded(name, address, store or DEFAULT_STORE, set_)
    cluster = Cluster(submission.ray, records.session, records.store)
    job_id, was_active = submit_runner(records, cluster, submission)
    store = str(records.store)
    if json_:
        print_json({"name": submission.name, "job_id": job_id, "attached": was_active, "store": store})
    else:
        again = f"--store {shlex.quote(store)}"
        print(
            f"{submission.name} {'is at work already' if was_active else 'was submitted'} as {job_id}.\n"
            f"  casa status {again}\n"
            f"  casa logs run --follow {again}\n"
            f"  casa stop {again}\n"
            f"  casa submit --name {submission.name} {again}    goes on after a stop or a loss"
        )
    if follow:
        raise typer.Exit(_follow(records, cluster, job_id))


def _asked(
    recipe: str, name: str | None, command: str, overrides: tuple[str, ...]
) -> tuple[Submission, Records]:
    """What a recipe asks for."""
    from pipelines.cli.shared.submission import Submission
    from pipelines.dag.records import Records
    from pipelines.recipe import load_recipe
    from pipelines.recipe.shipping import recipe_files
    from pipelines.recipe.stages import store_folder

    loaded = load_recipe(recipe, overrides)
    submission = Submission(
        name=name or loaded.name,
        ray=loaded.where.ray.model_dump(mode="json"),
        command=command,
        recipes=recipe_files(loaded),
    )
    return submission, Records(store_folder(loaded))


def _recorded(
    name: str | None, address: str | None, store: Folder, overrides: list[str] | None
) -> tuple[Submission, Records]:
    """The run that the store has under a name; on another cluster, if one is named."""
    from dataclasses import replace

    from casa_core.errors import ConfigError
    from pipelines.cli.shared.submission import read_submission, submitted_names
    from pipelines.dag.records import Records

    if overrides:
        raise ConfigError(
            "`--set` needs a recipe.", "Without one, a run goes on as it was submitted.", "Name the recipe."
        )
    names = submitted_names(store)
    wanted = name or (names[0] if len(names) == 1 else None)
    found = read_submission(store, wanted) if wanted in names else None
    if found is None:
        raise ConfigError(
            f"No run called {name} was submitted to {store}." if name else f"Which of {store}'s runs?",
            f"It has {', '.join(names)}." if names else "Nothing was submitted there.",
            "Name a recipe to submit one, or one of these with --name, or another store with --store.",
        )
    if address is not None:
        found = replace(found, ray={**found.ray, "address": address})
    return found, Records(store)


def _follow(records: Records, cluster: Cluster, job_id: str) -> int:
    """Print the runner's lines until its job has ended; 0 if it ended well."""
    from pipelines.cli.show.log import print_lines

    try:
        print_lines(records, cluster, job_id, follow=True)
    except KeyboardInterrupt:
        print("\nIt goes on without this terminal.")
        return 0
    outcome = records.outcome(job_id)
    if outcome is None and (why := cluster.why_not_begun(job_id)) is not None:
        raise why
    return 0 if outcome is not None and outcome.ok else 1
