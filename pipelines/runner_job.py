"""Entry point of a submitted run's runner, a job of the cluster.

python -m pipelines.runner_job <store>/jobs/run-<name>-a<attempt>.json
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from casa_core.errors import CasaError, StoreError
from infra.inside import Inside, inside
from pipelines.cli.app import report_error
from pipelines.cli.prepare import prepare
from pipelines.cli.run import run
from pipelines.cli.shared.submission import Submission, read_submission
from pipelines.cli.train import train
from pipelines.dag.job_main import copy_output, end_copying
from pipelines.dag.records import Outcome, Records
from pipelines.recipe.shipping import RECIPE
from pipelines.storage.uri import open_folder

COMMANDS = {"run": run, "train": train, "prepare": prepare}


def main() -> int:
    """Run what was submitted; 0 once all of its stages are done."""
    spec = json.loads(open_folder(sys.argv[1]).read_text())
    records = Records(open_folder(spec["store"]))
    copier, own = copy_output(records.log_path(spec["job_id"]))
    outcome = _outcome(records, spec)
    end_copying(copier, own)
    records.write_outcome(spec["job_id"], outcome)
    return 0 if outcome.ok else 1


def _outcome(records: Records, spec: dict[str, Any]) -> Outcome:
    try:
        submission = read_submission(records.store, spec["name"])
        if submission is None:
            raise StoreError(
                f"The store has no run called {spec['name']}.",
                f"{records.store}/submitted was removed since.",
                "Submit it again.",
            )
        dashboard = "" if submission.ray["address"] == "local" else _own_dashboard()
        with inside(Inside(job_id=spec["job_id"], dashboard=dashboard)):
            _run(submission)
    except CasaError as error:
        report_error(error)
        return Outcome(ok=False, what=error.what, why=error.why, remedy=error.remedy, explained=True)
    except Exception as error:
        traceback.print_exc()
        return Outcome(ok=False, what="".join(traceback.format_exception_only(error)).strip())
    return Outcome(ok=True)


def _run(submission: Submission) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in submission.recipes.items():
            (Path(folder) / name).write_text(text)
        with contextlib.chdir(folder):  # where the recipe names another, it lies beside it
            COMMANDS[submission.command](RECIPE, plain=True)


def _own_dashboard() -> str:
    """URL of the dashboard of the cluster that this process is a job of."""
    import ray

    session = ray.init(logging_level=logging.ERROR, log_to_driver=False)
    ray.shutdown()
    return f"http://{session.dashboard_url}"


if __name__ == "__main__":
    sys.exit(main())
