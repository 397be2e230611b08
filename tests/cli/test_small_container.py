"""The quickstart in a container as small and as foreign as they come, by its kernel's own means."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import local_ray
from pipelines.dag import artifact
from tests.support.dag import quickstart
from tests.support.paths import ROOT

GROUPS = Path("/sys/fs/cgroup")
LIMITS = {"cpu/cpu.cfs_quota_us": 100_000, "memory/memory.limit_in_bytes": 4 * 2**30}
"""One CPU and 4 GiB, by file of a control group."""
NOBODY = 65534

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        os.geteuid() != 0
        or not all((GROUPS / file).is_file() for file in LIMITS)
        or not all(map(shutil.which, ("unshare", "setpriv"))),
        reason="needs root, unshare, setpriv, and control groups of version 1",
    ),
]


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[list[Path]]:
    """Control groups with ``LIMITS``, which are removed at the end."""
    made = []
    for file, limit in LIMITS.items():
        kind, name = file.split("/")
        group = GROUPS / kind / f"casa-{os.getpid()}"
        group.mkdir()
        (group / name).write_text(str(limit))
        made.append(group)
    yield made
    for group in made:
        group.rmdir()


@pytest.fixture
def confined(tmp_path: Path, groups: list[Path]) -> list[str]:
    """Words before a command: another user without a home folder, a long TMPDIR, 64 MiB of ``/dev/shm``."""
    long = tmp_path / ("t" * 80)
    long.mkdir(mode=0o777)
    long.chmod(0o777)
    for folder in [tmp_path, *list(tmp_path.parents)[:-1]]:
        folder.chmod(folder.stat().st_mode | 0o011)
    script = tmp_path / "enter.sh"
    script.write_text(
        "set -e\n"
        "mount -t tmpfs -o size=64m,mode=1777 shm /dev/shm\n"
        + "".join(f"echo $$ > {group}/cgroup.procs\n" for group in groups)
        # The files of the environment may lie where only root reads.
        + f"exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
        " --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
        f' env HOME=/proc/nobody TMPDIR={long} PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={ROOT} "$@"\n'
    )
    return ["unshare", "--mount", "bash", str(script)]


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two stores, whose heads are ended whatever comes of their runs."""
    both = tmp_path / "store", tmp_path / "elsewhere"
    yield both
    for store in both:
        local_ray.stop(store / "session")


def test_it_runs_there_and_makes_the_same_as_anywhere(confined: list[str], stores: tuple[Path, Path]):
    store, elsewhere = stores
    store.mkdir()
    os.chown(store, NOBODY, NOBODY)
    casa = quickstart.command(store, "run", {"where.serve.port": "18236"})
    stop = [*casa[:3], "stop", "--store", str(store)]
    both = f"{shlex.join(casa)}; code=$?; {shlex.join(stop)}; exit $code"
    done = subprocess.run([*confined, "bash", "-c", both], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr

    quickstart.run(elsewhere, {"where.serve.port": "18236"})
    ours, theirs = quickstart.manifests(store), quickstart.manifests(elsewhere)
    assert ours.keys() == theirs.keys()
    for stage, manifest in ours.items():
        assert artifact.verify(store / manifest["kind"] / manifest["fingerprint"]) == []
        assert manifest["content_digest"] == theirs[stage]["content_digest"], stage


def test_the_doctor_names_what_is_small_or_missing_there(confined: list[str]):
    doctor = [*quickstart.command(Path("unused"), "doctor")[:3], "doctor"]
    done = subprocess.run(
        [*confined, *doctor],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "200"},
    )
    said = " ".join(done.stdout.split())
    for words in (
        "/dev/shm",
        "0.06 GiB",
        "4.0 GiB",
        "1 CPU",
        "set HOME",
        "RAY_TMPDIR",
        "cannot be written",
    ):
        assert words in said, done.stdout
