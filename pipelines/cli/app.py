"""``casa``: its commands, and how errors reach the user. Each command has a module of its name.

Nothing heavy is imported before a command needs it: ``casa --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from casa_core.errors import CasaError, ClusterError
from casa_core.printable import printable, spell_out
from pipelines.cli import (
    ask,
    bench,
    caption,
    data,
    doctor,
    evaluate,
    export,
    inspect,
    keys,
    logs,
    plan,
    prepare,
    report,
    run,
    serve,
    simulate,
    status,
    stop,
    sweep,
    train,
    verify,
)
from pipelines.cli.evaluations import compare, score
from pipelines.cli.history import adopt, diff, gc, lineage, reproduce
from pipelines.cli.shared.interrupts import INTERRUPTED, end_at_next_interrupt
from pipelines.cli.submitting import submit
from pipelines.cli.workflows import export_dag
from pipelines.storage.errors import disk_error, name_error

FAILED = 1
USER_ERROR = 2


class CasaGroup(TyperGroup):
    """Prints this project's errors as what, why and what to try, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; a ``CasaError``, or a disk's or path's error, ends it with :func:`exit_code`."""
        for stream in (sys.stdout, sys.stderr):
            spell_out(stream)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # while nothing of a run is under way: a plan, a download, a question
            end_at_next_interrupt()
            print("\nInterrupted.", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        except Exception as error:
            said = error if isinstance(error, CasaError) else disk_error(error) or name_error(error)
            if said is None:
                raise
        report_error(said)
        raise SystemExit(exit_code(said))


def exit_code(error: CasaError) -> int:
    """1 for what failed while it ran, 2 for a mistake in what was asked."""
    from pipelines.dag.run import StageFailed

    return FAILED if isinstance(error, StageFailed | ClusterError) else USER_ERROR


def report_error(error: CasaError) -> None:
    """Print an error as what, why and what to try."""
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble((printable(error.what), "bold red"))
    if error.why:
        text.append(f"\n{printable(error.why)}")
    if error.remedy:
        text.append("\ntry: ", style="bold").append(printable(error.remedy))
    Console(stderr=True).print(text, soft_wrap=True)


def _version(show: bool) -> None:
    if show:
        import importlib.metadata

        try:
            print(f"casa {importlib.metadata.version('casa')}")
        except importlib.metadata.PackageNotFoundError:
            print("casa, from a checkout that is not installed")
        raise typer.Exit()


app = typer.Typer(
    name="casa",
    cls=CasaGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def casa(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Cross-attention vision-language models: from raw files to a live endpoint, on a Ray cluster.

    A first time on this machine:

      casa doctor                    is everything there?

      casa run                       data, training, evaluation, endpoint

      casa ask cat.png "A cat?"      talk to what you trained

      casa stop                      end everything
    """


app.command("run")(run.run)
app.command("submit")(submit.submit)
app.command("prepare")(prepare.prepare)
app.command("train")(train.train)
app.command("export")(export.export)
app.command("export-dag")(export_dag.export_dag)
app.command("sweep")(sweep.sweep)
app.command("plan")(plan.plan)
app.command("simulate")(simulate.simulate)
app.command("status")(status.status)
app.command("logs")(logs.logs)
app.command("stop")(stop.stop)
app.command("verify")(verify.verify)
app.command("lineage")(lineage.lineage)
app.command("diff")(diff.diff)
app.command("reproduce")(reproduce.reproduce)
app.command("adopt")(adopt.adopt)
app.command("gc")(gc.gc)
app.command("report")(report.report)
app.command("serve")(serve.serve)
app.command("ask")(ask.ask)
app.command("caption")(caption.caption)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("score")(score.score)
app.command("inspect")(inspect.inspect)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(keys.app, name="keys")
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point of the ``casa`` script."""
    spare_loopback_the_proxy()
    app()


def spare_loopback_the_proxy() -> None:
    """Keep requests to this machine's own Ray head away from a proxy that the environment may name.

    Ray's job client and urllib would send them there, and the head would seem never to come up. What this
    process starts inherits the exception.
    """
    names = ("no_proxy", "NO_PROXY")  # programs differ in which they read, and in which of the two wins
    listed = ",".join(os.environ.get(name, "") for name in names).split(",")
    hosts = dict.fromkeys(host.strip() for host in listed if host.strip())
    if "*" not in hosts:
        every = ",".join(hosts | dict.fromkeys(("127.0.0.1", "localhost", "::1")))
        os.environ.update(dict.fromkeys(names, every))
