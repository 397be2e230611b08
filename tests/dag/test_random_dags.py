"""Random DAGs whose stages, runners and heads fail at random: each artifact is right, and made once.

The stages are real processes. What they should hold follows from the DAG's definition, here; what was made is
in a diary that only the stages write.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from infra.local_ray import RaySession
from pipelines.dag import artifact
from pipelines.dag.artifact import read_manifest
from pipelines.storage.remote_path import RemotePath
from pipelines.storage.uri import Folder, open_folder
from tests.support.dag.heads import Head, LightHead, RayHead, Run
from tests.support.dag.job_server import job_server
from tests.support.dag.random_dag import RandomDag

FAULTS = ("error", "store", "connection", "kill", "kill the job", "kill at the commit")
EVENTS = ("kill the runner", "kill jobs", "restart the head", "lose outcomes")
RUN_S = 120.0


@dataclass(frozen=True)
class Trouble:
    """A DAG's definition, and what goes wrong from outside.

    Attributes:
        events: Pause in seconds before each, and the event; one after the other, in the first runs.
        half_written: Stages whose folder holds half an artifact, of another time, from the beginning.
    """

    inputs: list[list[int]]
    faults: list[list[str]]
    events: list[tuple[float, str]] = field(default_factory=list)
    half_written: list[int] = field(default_factory=list)


def dags(
    events: tuple[str, ...] = EVENTS, faults: tuple[str, ...] = FAULTS, *, slow: bool = False
) -> st.SearchStrategy[Trouble]:
    """DAGs of one to six stages, each of up to three earlier ones; a stage in three has faults.

    Args:
        events, faults: From which to draw.
        slow: Stages take seconds.
    """

    @st.composite
    def draw_one(draw: st.DrawFn) -> Trouble:
        size = draw(st.integers(1, 6))
        inputs = [
            sorted(draw(st.sets(st.integers(0, number - 1), max_size=3))) if number else []
            for number in range(size)
        ]
        some = st.lists(st.sampled_from(faults), min_size=1, max_size=2) if faults else st.just([])
        own = st.one_of(st.just([]), st.just([]), some)
        moments = st.tuples(st.floats(0.0, 8.0 if slow else 0.3), st.sampled_from(events)) if events else None
        return Trouble(
            inputs,
            draw(st.lists(own, min_size=size, max_size=size)),
            draw(st.lists(moments, max_size=3)) if moments is not None else [],
            sorted(draw(st.sets(st.integers(0, size - 1), max_size=2))),
        )

    return draw_one()


def thorough(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Settings of a test whose failures depend on instants, so that none is tried again on a smaller DAG."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def content(dag: RandomDag, number: int) -> str:
    """What a stage's artifact should hold, by the definition alone."""
    texts = [content(dag, each) for each in sorted(dag.inputs[number], key=str)]
    return f"{number}({','.join(texts)})"


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def finish(dag: RandomDag, trouble: Trouble, file: str, head: Head) -> None:
    """Run, again after each end that is not a good one, until everything is made."""
    events = list(trouble.events)
    most = 2 + len(events) + sum(map(len, dag.faults))
    for _ in range(most):
        run = head.start(file)
        while events and run.code() is None:
            pause_s, event = events.pop(0)
            time.sleep(pause_s)
            happen(event, dag, head, run)
        if wait(run) == 0:
            return
    pytest.fail(f"not done after {most} runs")


def happen(event: str, dag: RandomDag, head: Head, run: Run) -> None:
    if event == "kill the runner":
        run.kill()
    elif event == "kill jobs":
        head.kill_jobs(dag.store)
    elif event == "restart the head":
        head.restart()
    elif event == "lose outcomes":
        for path in (open_folder(dag.store) / "jobs").rglob("*.outcome.json"):
            path.unlink(missing_ok=True)


def wait(run: Run) -> int:
    deadline = time.monotonic() + RUN_S
    while (code := run.code()) is None:
        assert time.monotonic() < deadline, "the run does not end"
        time.sleep(0.01)
    assert code in (0, 1, -signal.SIGKILL)
    return code


def check(dag: RandomDag, trouble: Trouble) -> None:
    """Every artifact is there, whole and right, and none was made more often than something went wrong."""
    makings = Counter(lines_of(Path(dag.diary)))
    outside = sum(event in ("kill jobs", "restart the head") for _, event in trouble.events)
    for number, stage in dag.planned().items():
        assert stage.status == "done"
        assert (stage.folder / "text").read_text() == content(dag, number)
        assert (stage.folder / "half").read_text() == content(dag, number)[: len(content(dag, number)) // 2]
        assert artifact.verify(stage.folder) == []
        faults = dag.faults[number]
        # A kill at the commit may come after it; one from outside before any fault.
        sure = faults.index("kill at the commit") if "kill at the commit" in faults else len(faults)
        fewest = 1 if outside else 1 + sure
        assert fewest <= makings[stage.name] <= 1 + len(faults) + outside, (makings, trouble)


def check_that_one_more_run_does_nothing(dag: RandomDag, file: str, head: Head) -> None:
    stages = dag.planned().values()
    before = [read_manifest(stage.folder) for stage in stages]
    diary, notes = lines_of(Path(dag.diary)), len(lines_of(Path(f"{file}.notes")))
    assert wait(head.start(file)) == 0
    assert lines_of(Path(dag.diary)) == diary
    assert [read_manifest(stage.folder) for stage in stages] == before
    assert sorted(lines_of(Path(f"{file}.notes"))[notes:]) == sorted(f"cached {s.name}" for s in stages)


def prepared(trouble: Trouble, store: Folder, folder: Path) -> RandomDag:
    """The DAG in its store, with half-written artifacts, and locks that holders of another time left."""
    dag = RandomDag(str(store), str(folder / "diary"), trouble.inputs, trouble.faults)
    (store / "locks").mkdir(parents=True, exist_ok=True)
    for number, stage in dag.planned().items():
        if number in trouble.half_written:
            stage.folder.mkdir(parents=True, exist_ok=True)
            (stage.folder / "half").write_text("of another ti")
            lock = store / "locks" / f"work-{stage.fingerprint}.write"
            (lock if isinstance(lock, Path) else lock / "00000001").write_text("killed long ago 7")
    return dag


def run_through(trouble: Trouble, store: Folder, folder: Path, head: Head) -> None:
    dag = prepared(trouble, store, folder)
    file = dag.save(folder / "dag.json")
    finish(dag, trouble, file, head)
    check(dag, trouble)
    check_that_one_more_run_does_nothing(dag, file, head)


def run_twice_at_once(trouble: Trouble, store: Folder, folder: Path, head: Head) -> None:
    dag = prepared(trouble, store, folder)
    files = [dag.save(folder / f"{name}.json") for name in ("one", "two")]
    runs = [head.start(file) for file in files]
    assert [wait(run) for run in runs] == [0, 0]
    check(dag, trouble)
    for file in files:
        made = [line for line in lines_of(Path(f"{file}.notes")) if line.split()[0] in ("finished", "cached")]
        assert len(made) == len(dag.inputs), "each of the two ends with everything"
    check_that_one_more_run_does_nothing(dag, files[0], head)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder for many small stores."""
    folder = Path(tempfile.mkdtemp(prefix="casa-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def light() -> Iterator[Head]:
    with job_server() as path:
        yield LightHead(path)


@pytest.fixture
def light_on_s3(s3_folder: RemotePath) -> Iterator[Head]:
    """A head whose processes have the S3 server's credentials."""
    with job_server() as path:
        yield LightHead(path)


def own(place: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=place))


@thorough(6)
@given(trouble=dags())
def test_whatever_fails_every_artifact_is_right_and_made_once(trouble: Trouble, place: Path, light: Head):
    folder = own(place)
    run_through(trouble, folder / "store", folder, light)


@pytest.mark.slow
@thorough(200)
@given(trouble=dags())
def test_two_hundred_random_runs_end_as_they_should(trouble: Trouble, place: Path, light: Head):
    folder = own(place)
    run_through(trouble, folder / "store", folder, light)


@thorough(4)
@given(trouble=dags(events=(), faults=()))
def test_two_runs_at_once_on_a_folder_make_each_artifact_once(trouble: Trouble, place: Path, light: Head):
    folder = own(place)
    run_twice_at_once(trouble, folder / "store", folder, light)


@pytest.mark.slow
@thorough(3)
@given(trouble=dags(events=(), faults=()))
def test_two_runs_at_once_on_s3_make_each_artifact_once(
    trouble: Trouble, place: Path, s3_folder: RemotePath, light_on_s3: Head
):
    folder = own(place)
    run_twice_at_once(trouble, s3_folder / folder.name, folder, light_on_s3)


@pytest.mark.slow
@thorough(5)
@given(trouble=dags(faults=tuple(fault for fault in FAULTS if fault != "kill at the commit")))
def test_random_runs_on_s3_end_as_they_should(
    trouble: Trouble, place: Path, s3_folder: RemotePath, light_on_s3: Head
):
    folder = own(place)
    run_through(trouble, s3_folder / folder.name, folder, light_on_s3)


@pytest.mark.slow
@thorough(3)
@given(trouble=dags(events=("kill the runner", "kill jobs", "lose outcomes"), slow=True))
def test_random_runs_on_a_real_ray_head_end_as_they_should(
    trouble: Trouble, place: Path, ray_folder: Path, ray_head: RaySession
):
    folder = own(place)
    run_through(trouble, folder / "store", folder, RayHead(str(ray_folder)))
