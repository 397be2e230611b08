"""Runs every command of the documents, as far as this machine can, and reports times and exit codes.

python -m docs.run_commands STORE     # the store of a finished quickstart, whose endpoint may run or not

Each line of a shell block is one command. It runs in a folder of its own, where the files are that the
documents speak of; names of checkpoints and runs are replaced by the store's. What needs a cluster, a cloud,
the hub or an hour is listed with this reason instead. The report is docs/commands_run.md.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs" / "commands_run.md"
SECONDS = 300
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "infra/README.md", "docs/*.md", "docs/guides/*.md")

NOT_HERE: tuple[tuple[str, str], ...] = (
    (r"^kubectl|^sbatch|k8s|argo|airflow|infra/kubernetes", "a Kubernetes or Slurm cluster"),
    (
        r"s3://|AWS_ACCESS|://head|9000|127\.0\.0\.1:(8265|PORT)|casa-trial",
        "a cluster or an S3 server; tests start both",
    ),
    (r"lmms", "lmms-eval, in an environment of its own"),
    (r"^make |^pre-commit", "measured apart: sets up an environment, or runs for a quarter of an hour"),
    (r"casa-(qwen|helium)[\w-]*( model| --step|$)|train casa-qwen-video$", "the hub's data and weights"),
    (r"run .*fusion\.kind|train\.steps=600|sweep ablation", "a training of several minutes, or hours"),
    (r"/mnt/|my-model|evaluations/[ab]|9c01fe|2026-11-29|before\.png", "artifacts of the reader's own"),
    (
        r"(ours|my|mine|shapes|lm|corpus)\.yaml|(score|compare) results|data/pictures"
        r"|(prepare|plan) RECIPE|FILE\.json",
        "the reader's own files",
    ),
    (
        r"^pytest|code_version|docs\.reference|gate=scale|export casa-helium|evaluate model"
        r"|card clean-shapes",
        "what a guide builds first",
    ),
    (r"casa reproduce$", "the time of a whole run"),
    (r"casa serve|tensorboard --logdir", "serves until it is ended"),
    (r"--open", "a browser"),
)
"""What a command has in it → what it would need."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A command of a document: what became of it.

    Attributes:
        code: Exit code; ``None`` where it did not run, for the reason in ``note``.
    """

    document: str
    command: str
    code: int | None
    seconds: float
    note: str


def commands(text: str) -> Iterator[str]:
    """The commands of a document's shell blocks, without comments."""
    for block in re.findall(r"(?ms)^```(?:sh|bash)\n(.*?)^```", text):
        for line in block.replace("\\\n", " ").splitlines():
            if command := _without_comment(line):
                yield command


def _without_comment(line: str) -> str:
    for mark in re.finditer(r"(^|\s)#", line):
        before = line[: mark.start()]
        if before.count('"') % 2 == 0 and before.count("'") % 2 == 0:
            return before.strip()
    return line.strip()


def prepare(folder: Path, store: Path) -> dict[str, str]:
    """Lay out what the documents speak of; returns what stands in a document → what stands here."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).rectangle((12, 18, 48, 46), fill="red")
    for name in ("picture.png", "cat.png", "photo.jpg", "frame.jpg", "IMAGES/one.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        picture.save(folder / name)
    shutil.copy(next(store.glob("corpus/*/videos/test-*.mp4")), folder / "clip.mp4")
    (folder / "runs").symlink_to(store)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    run = json.loads((store / "session" / "run.json").read_text())
    train = next(stage for stage in run["stages"] if stage["name"] == "train")
    model = f"runs/train/{train['fingerprint']}/model"
    return {
        r"MODEL_FOLDER|runs/train/\w+…(/model)?": model,
        r"/etc/casa/keys\.jsonl": "keys.jsonl",
        r"casa-…": "casa-0",
        r"http://127\.0\.0\.1:8000": run["endpoint"],
    }


def run_one(document: str, command: str, folder: Path, here: dict[str, str], shell: dict[str, str]) -> Ran:
    """Run a command, or say what it needs. Assignments and ``export`` stay for the commands after it."""
    for pattern, need in NOT_HERE:
        if re.search(pattern, command):
            return Ran(document, command, None, 0.0, f"needs {need}")
    line = command
    for written, ours in here.items():
        line = re.sub(written, ours, line)
    if line.endswith("&"):  # it listens beside the commands after it: here for five seconds
        line = f"timeout 5 {line.rstrip('& ')} || test $? = 124"
    kept = "".join(f"{name}={shlex.quote(value)}; " for name, value in shell.items())
    began = time.monotonic()
    try:
        done = subprocess.run(
            ["bash", "-c", f"{kept}{line}"],
            cwd=folder,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "COLUMNS": "100",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Ran(document, command, 124, SECONDS, f"no end within {SECONDS} s")
    if (assigned := re.fullmatch(r"(\w+)=(.+)", line)) and done.returncode == 0:
        echoed = subprocess.run(
            ["bash", "-c", f'{kept}{line}; printf %s "${assigned[1]}"'],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        shell[assigned[1]] = echoed.stdout
    last = (done.stderr or done.stdout).strip().splitlines()[-1:] if done.returncode else []
    return Ran(document, command, done.returncode, time.monotonic() - began, "".join(last)[:120])


def report(ran: list[Ran], machine: str) -> str:
    """The report as Markdown."""
    tried = [one for one in ran if one.code is not None]
    lines = [
        "# Commands of the documents",
        "",
        f"`python -m docs.run_commands`, {datetime.date.today()}, {machine}: {len(tried)} of {len(ran)} "
        f"commands ran here, {sum(one.code == 0 for one in tried)} with exit code 0.",
        "",
        "| document | command | exit | seconds | |",
        "|---|---|---:|---:|---|",
    ]
    for one in ran:
        code, seconds = ("", "") if one.code is None else (str(one.code), f"{one.seconds:.1f}")
        command = one.command.replace("|", "\\|")
        lines.append(f"| {one.document} | `{command}` | {code} | {seconds} | {one.note.replace('|', '')} |")
    return "\n".join(lines) + "\n"


def main(store: str) -> int:
    """Run all; 1 where a command failed."""
    from benchmarks.measure import machine

    ran: list[Ran] = []
    with tempfile.TemporaryDirectory(prefix="casa-docs-") as name:
        folder = Path(name)
        here = prepare(folder, Path(store).resolve())
        for pattern in DOCUMENTS:
            for path in sorted(ROOT.glob(pattern)):
                document, shell = str(path.relative_to(ROOT)), dict[str, str]()
                for command in commands(path.read_text(encoding="utf-8")):
                    if command.endswith("casa stop"):  # at the end
                        continue
                    ran.append(run_one(document, command, folder, here, shell))
                    print(f"{ran[-1].code} {ran[-1].seconds:6.1f} s  {document}: {command}", flush=True)
        ran.append(run_one("README.md", ".venv/bin/casa stop", folder, here, {}))
        REPORT.write_text(report(ran, machine().partition(", torch")[0]), encoding="utf-8")
    failed = [one for one in ran if one.code]
    print(f"{REPORT}: {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(__doc__)
        sys.exit(2)
    sys.exit(main(sys.argv[1]))
