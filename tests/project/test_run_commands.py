"""What is taken for a command of a document, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

from docs.run_commands import Ran, commands, report, run_one

TEXT = """
```sh
# a heading
casa plan quickstart     # what would run
one \\
  two   # both
export A=1
```
```python
print("no command")
```
```bash
echo "a # b"
```
"""


def test_commands_are_the_lines_of_shell_blocks_without_comments():
    assert list(commands(TEXT)) == ["casa plan quickstart", "one    two", "export A=1", 'echo "a # b"']


def test_a_command_runs_with_the_names_of_this_machine_and_what_was_assigned_before(tmp_path: Path):
    shell: dict[str, str] = {}
    here = {"MODEL_FOLDER": "a b"}
    assert run_one("d", "word=$(echo said)", tmp_path, here, shell).code == 0
    assert shell == {"word": "said"}
    assert run_one("d", "test $word = said && echo MODEL_FOLDER > out", tmp_path, here, shell).code == 0
    assert (tmp_path / "out").read_text() == "a b\n"


def test_a_failure_and_what_could_not_be_run_are_reported(tmp_path: Path):
    failed = run_one("d", "echo why >&2; exit 3", tmp_path, {}, {})
    assert (failed.code, failed.note) == (3, "why")
    left = run_one("d", "kubectl apply -k infra", tmp_path, {}, {})
    assert left.code is None
    page = report([failed, left, Ran("d", "true", 0, 0.1, "")], "a machine")
    assert "2 of 3 commands ran here, 1 with exit code 0" in page
    assert "needs a Kubernetes or Slurm cluster" in page
