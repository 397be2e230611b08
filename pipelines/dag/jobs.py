"""Client of Ray's job API, on a local head of our own or another cluster: submit, watch and stop stages."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from casa_core.errors import ClusterError
from infra import local_ray
from pipelines.dag.records import JobSpec

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from pipelines.storage.uri import Folder

JobState = Literal["active", "succeeded", "failed"]
ROOT = Path(__file__).resolve().parents[2]
SERVE_APPLICATION = "casa"
"""Name of this project's application in Ray Serve."""

T = TypeVar("T")


class Unreachable(ClusterError):
    """The cluster's job API does not answer."""


class Busy(Unreachable):
    """The cluster answers, and takes no job at the moment: its agents are still starting, or overloaded."""


class JobExists(ClusterError):
    """The cluster has had a job of this id, possibly for another store."""


class Cluster:
    """The Ray cluster of a run; reached, or started where it is our own local head, on first use.

    Args:
        ray: The recipe's ``where.ray``.
        session: Folder of the local head's session file.
        entrypoint_module: Module that runs a job, given the path of its spec.
    """

    def __init__(
        self, ray: Mapping[str, Any], session: Path, entrypoint_module: str = "pipelines.dag.job_main"
    ) -> None:
        self._ray = ray
        self._session = session
        self._module = entrypoint_module
        self._client: JobSubmissionClient | None = None
        self._local_session = ""

    @property
    def is_local(self) -> bool:
        return self._ray["address"] == "local"

    def address(self) -> str:
        """URL of the dashboard; starts the local head if need be.

        Raises:
            ClusterError: If the local head does not come up.
        """
        if not self.is_local:
            return str(self._ray["address"])
        session = local_ray.start(
            self._session,
            num_cpus=self._ray["num_cpus"],
            object_store_mb=self._ray["object_store_mb"],
            python_path=ROOT,
        )
        self._local_session = session.session_id
        return session.address

    def submit(self, spec: JobSpec, spec_path: Folder) -> None:
        """Start a stage's job.

        Raises:
            JobExists: If there has been a job of that id; Ray never takes an id twice.
            ClusterError: If Ray refuses it for another reason.
            Unreachable: If there is no answer.
        """
        python = sys.executable if self.is_local else "python"
        entrypoint = f"exec {shlex.quote(python)} -m {self._module} {shlex.quote(str(spec_path))}"
        runtime_env: dict[str, Any] = {}
        if self._ray.get("working_dir"):
            runtime_env["working_dir"] = self._ray["working_dir"]
        if self.is_local:  # The head may be older than the shell's settings of S3.
            given = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
            runtime_env |= {"env_vars": given} if given else {}
        metadata = {"stage": spec.stage, "fingerprint": spec.fingerprint}
        self._call(
            lambda client: client.submit_job(
                entrypoint=entrypoint,
                submission_id=spec.job_id,
                runtime_env=runtime_env or None,
                metadata=metadata,
            )
        )

    def state(self, job_id: str) -> JobState | None:
        """State of a job; ``None`` if this cluster has no record of it (a head started since then)."""
        details = self._call(lambda client: _info(client, job_id))
        return None if details is None else _state(details.status.value)

    def message(self, job_id: str) -> str:
        """Ray's message about a job: why it failed to start, the code it ended with."""
        details = self._call(lambda client: _info(client, job_id))
        return "" if details is None else str(details.message or "")

    def driver_log(self, job_id: str) -> str:
        """What Ray has of a job's output: all there is when the job failed before it began."""
        return self._call(lambda client: client.get_job_logs(job_id))

    def stop(self, job_id: str) -> None:
        """Ask a job to end."""
        self._call(lambda client: client.stop_job(job_id))

    def active_jobs(self) -> list[str]:
        """Ids of the jobs that are waiting or running."""
        listed = self._call(lambda client: client.list_jobs())
        active = (job.submission_id for job in listed if _state(job.status.value) == "active")
        return [job_id for job_id in active if job_id]

    def is_reachable(self) -> bool:
        """Whether the cluster answers now. Starts nothing."""
        if self.is_local:
            return local_ray.find(self._session) is not None
        try:
            self.active_jobs()
        except Unreachable:
            return False
        return True

    def was_stopped(self) -> bool:
        """Whether the local head that was last used was ended on purpose, by `casa stop`."""
        return self.is_local and local_ray.was_stopped(self._session, self._local_session)

    def end_serving(self) -> None:
        """Remove this project's application from Ray Serve; other applications stay."""
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        serve = ServeSubmissionClient(self.address())
        applications = serve.get_serve_details()["applications"]
        if SERVE_APPLICATION not in applications:
            return
        configs = [
            app.get("deployed_app_config") for n, app in applications.items() if n != SERVE_APPLICATION
        ]
        others = [config for config in configs if config]
        if others:
            serve.deploy_applications({"applications": others})
        else:
            serve.delete_applications()

    def forget(self) -> None:
        """Drop the connection: the next call looks for the cluster anew, or starts its local head again."""
        self._client = None

    def _call(self, action: Callable[[JobSubmissionClient], T]) -> T:
        import requests

        try:
            if self._client is None:
                from ray.job_submission import JobSubmissionClient

                self._client = JobSubmissionClient(self.address())
            return action(self._client)
        except (requests.exceptions.RequestException, ConnectionError) as error:
            raise Unreachable(
                f"The Ray cluster at {self._ray['address']} does not answer.",
                f"{str(error).splitlines()[0]}.",
                "`casa status` shows the session; `casa run` starts a local head again and resumes.",
            ) from None
        except RuntimeError as error:
            if isinstance(error, ClusterError):
                raise
            if "try again later" in str(error):
                raise Busy(
                    f"The Ray cluster at {self._ray['address']} takes no jobs at the moment.",
                    str(error).strip()[-2000:],
                    "Run again to resume once it has recovered; `casa status` shows what is done.",
                ) from None
            refusal = JobExists if "already exists" in str(error) else ClusterError
            raise refusal("Ray refused the request.", str(error).strip()[-2000:]) from None


def _info(client: JobSubmissionClient, job_id: str) -> Any:
    try:
        return client.get_job_info(job_id)
    except RuntimeError as error:
        if "does not exist" in str(error):
            return None
        raise


def _state(status: str) -> JobState:
    if status in ("PENDING", "RUNNING"):
        return "active"
    return "succeeded" if status == "SUCCEEDED" else "failed"
