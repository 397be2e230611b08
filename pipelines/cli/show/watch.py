"""Progress of a run as it happens: a live table, plain lines, or JSON lines for a script."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from casa_core.errors import CasaError
from casa_core.printable import printable
from pipelines.cli.show.format import headline, print_json_line
from pipelines.dag.attempts.kinds import RETRIES, FailureKind
from pipelines.dag.plan import PlannedStage
from pipelines.dag.progress import Progress
from pipelines.dag.run import Observer
from pipelines.text_format import duration

PLAIN_EVERY_S = 10.0


class Watcher(Observer):
    """Shows nothing: what all watchers share. A stage's own output is for ``casa logs``."""

    def __init__(self, stages: Sequence[PlannedStage]) -> None:
        self.stages = list(stages)
        self._began: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def started(self, stage: PlannedStage, job_id: str, *, attached: bool) -> None:
        self._began.setdefault(stage.name, time.monotonic())

    def seconds(self, stage: PlannedStage) -> float:
        """Seconds since the stage's job was started or found."""
        return time.monotonic() - self._began.get(stage.name, time.monotonic())


class PlainWatcher(Watcher):
    """One line per event; progress every ``PLAIN_EVERY_S`` seconds."""

    def __init__(self, stages: Sequence[PlannedStage]) -> None:
        super().__init__(stages)
        self._width = max(len(stage.name) for stage in self.stages)
        self._shown_at: dict[str, float] = {}

    def _print(self, stage: PlannedStage, text: str) -> None:
        print(f"{stage.name:<{self._width}}  {printable(text)}", flush=True)

    def started(self, stage: PlannedStage, job_id: str, *, attached: bool) -> None:
        super().started(stage, job_id, attached=attached)
        self._print(stage, f"{'still running, watched again' if attached else 'started'}  ({job_id})")

    def progressed(self, stage: PlannedStage, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._shown_at.get(stage.name, self._began.get(stage.name, now)) >= PLAIN_EVERY_S:
            self._shown_at[stage.name] = now
            share = f"{progress.done / progress.total:4.0%}" if progress.total else ""
            self._print(stage, f"{share}  {progress.message}")

    def finished(self, stage: PlannedStage, manifest: dict[str, Any], *, cached: bool) -> None:
        took = "already done" if cached else f"done in {duration(self.seconds(stage))}"
        self._print(stage, f"{took}  {headline(manifest['summary'])}".rstrip())

    def retrying(self, stage: PlannedStage, reason: str, *, kind: FailureKind, wait_s: float) -> None:
        self._print(stage, _again(reason, kind, wait_s))

    def failed(self, stage: PlannedStage, error: CasaError) -> None:
        self._print(stage, "failed")


def _again(reason: str, kind: FailureKind, wait_s: float) -> str:
    return f"{RETRIES[kind].name}, trying again in {wait_s:.0f} s: {reason}"


class JsonWatcher(Watcher):
    """One JSON object per line: ``event``, ``stage``, ``fingerprint`` and what belongs to the event."""

    def _emit(self, event: str, stage: PlannedStage, **values: Any) -> None:
        print_json_line({"event": event, "stage": stage.name, "fingerprint": stage.fingerprint, **values})

    def started(self, stage: PlannedStage, job_id: str, *, attached: bool) -> None:
        super().started(stage, job_id, attached=attached)
        self._emit("started", stage, job_id=job_id, attached=attached)

    def progressed(self, stage: PlannedStage, progress: Progress) -> None:
        self._emit("progress", stage, done=progress.done, total=progress.total, message=progress.message)

    def finished(self, stage: PlannedStage, manifest: dict[str, Any], *, cached: bool) -> None:
        self._emit("finished", stage, cached=cached, summary=manifest["summary"])

    def retrying(self, stage: PlannedStage, reason: str, *, kind: FailureKind, wait_s: float) -> None:
        self._emit("retrying", stage, kind=kind, wait_s=wait_s, reason=reason)

    def failed(self, stage: PlannedStage, error: CasaError) -> None:
        self._emit("failed", stage, what=error.what, why=error.why, remedy=error.remedy)


class _Elapsed(ProgressColumn):
    """Seconds a stage has run, or took."""

    def render(self, task: Task) -> Text:
        shown = duration(task.finished_time or task.elapsed or 0) if task.started else ""
        return Text(shown if not task.fields["cached"] else "cached", style="dim")


class LiveWatcher(Watcher):
    """A table that is redrawn: one row per stage, with a bar, a message and the time."""

    def __init__(self, stages: Sequence[PlannedStage]) -> None:
        super().__init__(stages)
        self._bars = Bars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Elapsed(),
            TextColumn(
                "{task.fields[note]}",
                style="dim",
                markup=False,  # a stage's own text: a bracket in it is a bracket
                table_column=Column(no_wrap=True, overflow="ellipsis"),
            ),
        )
        self._rows = {
            stage.name: self._bars.add_task(stage.name, start=False, total=None, note="", cached=False)
            for stage in self.stages
        }
        self._notes: list[str] = []
        self._live = Live(get_renderable=self._render, console=Console(), refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        return Group(self._bars, *(Text(printable(note), style="yellow") for note in self._notes[-3:]))

    def started(self, stage: PlannedStage, job_id: str, *, attached: bool) -> None:
        super().started(stage, job_id, attached=attached)
        self._bars.start_task(self._rows[stage.name])
        self._update(stage, note="still running, watched again" if attached else "starting")

    def progressed(self, stage: PlannedStage, progress: Progress) -> None:
        # After its last step a stage still has to commit its artifact.
        done = min(progress.done, progress.total * 0.999)
        self._update(stage, completed=done, total=progress.total or None, note=progress.message)

    def finished(self, stage: PlannedStage, manifest: dict[str, Any], *, cached: bool) -> None:
        if cached:
            self._bars.start_task(self._rows[stage.name])
        self._update(stage, completed=1, total=1, note=headline(manifest["summary"]), cached=cached)

    def retrying(self, stage: PlannedStage, reason: str, *, kind: FailureKind, wait_s: float) -> None:
        self._update(stage, note=RETRIES[kind].name)
        self._notes.append(f"{stage.name}: {_again(reason, kind, wait_s)}")

    def failed(self, stage: PlannedStage, error: CasaError) -> None:
        self._bars.stop_task(self._rows[stage.name])
        self._bars.update(self._rows[stage.name], description=f"[red]{stage.name}[/]")
        self._update(stage, note="failed")

    def _update(self, stage: PlannedStage, note: str, **values: Any) -> None:
        self._bars.update(self._rows[stage.name], note=printable(note), **values)
