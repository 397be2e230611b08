"""Progress of a run as it happens: a live table, plain lines, or JSON lines for a script."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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

PLAIN_EVERY_S = 9.0
"""Seconds between two lines of a running stage, news or none: with a busy machine's delay below ten."""


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
    """One line per event, and every ``PLAIN_EVERY_S`` seconds how far a stage is, news or none."""

    def __init__(self, stages: Sequence[PlannedStage]) -> None:
        super().__init__(stages)
        self._width = max(len(stage.name) for stage in self.stages)
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}
        self._over = threading.Event()
        self._closed: OSError | None = None
        self._beat = threading.Thread(target=self._say_what_runs, name="plain-watcher", daemon=True)

    def __enter__(self) -> Self:
        self._beat.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._beat.join()

    def _print(self, stage: PlannedStage, text: str) -> None:
        print(f"{stage.name:<{self._width}}  {printable(text)}", flush=True)

    def _event(self, stage: PlannedStage, text: str, *, running: bool) -> None:
        """Prints an event, after which a stage runs on or does not."""
        with self._lock:
            self._running.pop(stage.name, None)
            self._print(stage, text)
            if running:
                self._running[stage.name] = _Running(stage, time.monotonic())

    def _say_what_runs(self) -> None:
        try:
            while not self._over.wait(0.5):
                with self._lock:
                    now = time.monotonic()
                    for one in self._running.values():
                        if now - one.shown_at >= PLAIN_EVERY_S:
                            one.shown_at = now
                            self._print(one.stage, one.line(self.seconds(one.stage)))
        except OSError as error:  # a closed pipe: the run's own thread raises it
            self._closed = error

    def started(self, stage: PlannedStage, job_id: str, *, attached: bool) -> None:
        super().started(stage, job_id, attached=attached)
        said = "still running, watched again" if attached else "started"
        self._event(stage, f"{said}  ({job_id})", running=True)

    def progressed(self, stage: PlannedStage, progress: Progress) -> None:
        if self._closed is not None:
            raise self._closed
        with self._lock:
            if (one := self._running.get(stage.name)) is not None:
                one.latest, one.is_news = progress, True

    def finished(self, stage: PlannedStage, manifest: dict[str, Any], *, cached: bool) -> None:
        took = "already done" if cached else f"done in {duration(self.seconds(stage))}"
        self._event(stage, f"{took}  {headline(manifest['summary'])}".rstrip(), running=False)

    def retrying(self, stage: PlannedStage, reason: str, *, kind: FailureKind, wait_s: float) -> None:
        self._event(stage, _again(reason, kind, wait_s), running=True)

    def failed(self, stage: PlannedStage, error: CasaError) -> None:
        self._event(stage, "failed", running=False)


@dataclass(slots=True)
class _Running:
    """A stage between two of its events.

    Attributes:
        stage: The stage.
        shown_at: Monotonic time of its last line.
        latest: Its progress since the last event.
        is_news: Whether that came after the last line.
    """

    stage: PlannedStage
    shown_at: float
    latest: Progress = field(default_factory=lambda: Progress(0, 0, "starting"))
    is_news: bool = False

    def line(self, seconds: float) -> str:
        """How far it is; with the seconds it has taken where that was said before."""
        share = f"{self.latest.done / self.latest.total:4.0%}  " if self.latest.total else ""
        since = "" if self.is_news else f", after {duration(seconds)}"
        self.is_news = False
        return f"{share}{self.latest.message}{since}"


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
