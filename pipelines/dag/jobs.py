"""Client of Ray's job API, on a local head of our own or another cluster: submit, watch and stop stages."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from casa_core.errors import ClusterError
from infra import local_ray
from infra.code_package import code_archive, missing_package
from infra.inside import dashboard_of
from infra.ray_errors import Busy, Unreachable
from pipelines.dag.records import JobSpec
from pipelines.dag.shared_names import serve_application, store_digest
from pipelines.waits import Announcer, announced

if TYPE_CHECKING:
    from infra.ray_clients import JobsClient
    from pipelines.storage.uri import Folder

JobState = Literal["active", "succeeded", "failed", "stopped"]
ROOT = Path(__file__).resolve().parents[2]
RAYS_PYTHON = (
    '"$(own=$(sed -n "s|.* \\(/.*\\)/lib/python[^/]*/.*/ray/_raylet[^/]*$|\\1/bin/python|p" /proc/$PPID/maps '
    '2>/dev/null | head -n 1); [ -x "$own" ] && echo "$own" || command -v python || command -v python3 || '
    'echo python)"'
)
"""Shell: the Python that Ray runs in on the node, by the library that the job's supervisor has mapped. The
PATH may have none, or another that lacks everything; without /proc it decides."""
T = TypeVar("T")


class JobExists(ClusterError):
    """The cluster has had a job of this id."""


class Cluster:
    """The Ray cluster of a run; reached, or started where it is our own local head, on first use.

    Other stores may have jobs there: the ids that Ray has end in this store's digest, others are not seen.

    Args:
        ray: The recipe's ``where.ray``.
        session: Folder of the local head's session file.
        store: Whose jobs these are.
        entrypoint_module: Module that runs a job, given the path of its spec.
    """

    def __init__(
        self,
        ray: Mapping[str, Any],
        session: Path,
        store: Folder,
        entrypoint_module: str = "pipelines.dag.job_main",
    ) -> None:
        self._ray = ray
        self._session = session
        self._store = store
        self._suffix = f"-{store_digest(store)}"
        self._application = serve_application(store)
        self._module = entrypoint_module
        self._client: JobsClient | None = None
        self._local_session = ""
        self._code: Path | None = None
        self._answer = Announcer("Waiting for Ray to take a request; its agents start late on a busy machine")

    @property
    def is_local(self) -> bool:
        return self._ray["address"] == "local"

    def address(self) -> str:
        """URL of the dashboard; starts the local head if need be.

        Raises:
            ClusterError: If the local head does not come up.
        """
        if not self.is_local:
            return dashboard_of(self._ray)
        with announced("Waiting for this machine's Ray head to start"):
            session = local_ray.start(
                self._session,
                num_cpus=self._ray["num_cpus"],
                object_store_mb=self._ray["object_store_mb"],
                python_path=ROOT,
            )
        self._local_session = session.session_id
        return session.address

    def submit(self, spec: JobSpec, spec_path: Folder) -> None:
        """Start a stage's job; errors as of :meth:`start`."""
        metadata = {"stage": spec.stage, "fingerprint": spec.fingerprint}
        timeout = [] if spec.timeout_s is None else [f"{spec.timeout_s:g}"]
        self.start(spec.job_id, [self._module, str(spec_path), *timeout], metadata)

    def start(self, job_id: str, command: Sequence[str], metadata: dict[str, str]) -> None:
        """Start a job that runs a module, the first word of ``command``, with the others as its arguments.

        Raises:
            JobExists: If a job of that id has ended; Ray never takes an id twice.
            ClusterError: If Ray refuses it for another reason.
            Unreachable: If there is no answer, in which case the job may have started.
        """
        python = shlex.quote(sys.executable) if self.is_local else RAYS_PYTHON
        entrypoint = f"exec {python} -m {shlex.join(command)}"
        runtime_env = self._runtime_env()
        try:
            self._call(
                lambda client: client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=self._ray_id(job_id),
                    runtime_env=runtime_env or None,
                    metadata=metadata,
                )
            )
        except JobExists:
            # It is active if an earlier request started it, whose answer was an error or did not arrive.
            if self.state(job_id) != "active":
                raise

    def _runtime_env(self) -> dict[str, Any]:
        """What Ray gives to a job: variables, and on a cluster that is not ours the code."""
        # The local head may be older than the shell's settings of S3.
        wanted = [n for n in os.environ if n.startswith("AWS_")] if self.is_local else self._ray["pass_env"]
        given = {name: os.environ[name] for name in wanted if name in os.environ}
        environment: dict[str, Any] = {"env_vars": given} if given else {}
        if not self.is_local and self._ray["code"] == "sent":
            environment["working_dir"] = str(self._archive())
        return environment

    def _archive(self) -> Path:
        """The code as it was when the first job started: what changes in it while a run goes on is no part
        of the run's fingerprints either."""
        if self._code is None or not self._code.is_file():
            extra = self._ray["working_dir"]
            store = (self._store,) if isinstance(self._store, Path) else ()
            self._code = code_archive(Path(extra) if extra else None, self._session / "code", store)
        return self._code

    def state(self, job_id: str) -> JobState | None:
        """State of a job; ``None`` if this cluster has no record of it (a head started since then).

        Raises:
            Unreachable: If there is no answer, or a local head answers that can run no job.
        """
        details = self._info(job_id)
        found = None if details is None else _state(details.status.value)
        if found == "active" and self.is_local and not self.has_local_head():
            raise Unreachable(
                "The local Ray head runs no jobs.",
                "Its raylet has ended, as when a process of Ray's is killed for want of memory.",
                "Run again: another head takes its place. `casa doctor` shows the machine's memory.",
            )
        return found

    def has_local_head(self) -> bool:
        """Whether it is a head of our own, and that and its raylet run, though it may not answer yet."""
        session = local_ray.read_session(self._session) if self.is_local else None
        return session is not None and local_ray.is_running(session)

    def waits_for(self, job_id: str) -> str:
        """Why a job has not begun, in Ray's words; empty once it has, or where it was lost."""
        details = self._info(job_id)
        if details is None or details.status.value != "PENDING":
            return ""
        return str(details.message)

    def require_node(self) -> None:
        """Check that a node of the cluster can run jobs at all.

        Raises:
            ClusterError: If none is alive: a head answers without, and has its jobs wait for ever.
        """
        nodes = self._call(lambda client: client.node_states())
        if not any(state.startswith("ALIVE") for state in nodes.values()):
            raise ClusterError(
                "No node of the Ray cluster is alive, its head's neither.",
                "; ".join(f"{node}: {state}" for node, state in nodes.items()) or "It has none.",
                "Start Ray there again (`ray stop`, `ray start`), and run again to resume.",
            )

    def message(self, job_id: str) -> str:
        """Ray's message about a job: why it failed to start, the code it ended with."""
        details = self._info(job_id)
        return "" if details is None else str(details.message or "")

    def driver_log(self, job_id: str) -> str:
        """What Ray has of a job's output: all there is when the job failed before it began."""
        try:
            log = self._call(lambda client: _if_known(lambda: client.get_job_logs(self._ray_id(job_id))))
        except Busy as error:  # for good, where the node that has the log was lost
            return str(error.why)
        return log or ""

    def why_not_begun(self, job_id: str) -> ClusterError | None:
        """Why a job that left no record cannot have begun, and would not at another attempt either."""
        log = self.driver_log(job_id)
        missing = re.search(r"No module named '?([\w.]+)", log)
        if missing is not None:
            return missing_package(missing[1])
        if re.search(r"python: (command )?not found", log):
            return ClusterError(
                "The cluster's jobs find no Python.",
                "Neither `python` nor `python3` is on their PATH.",
                "Start Ray on its nodes with the environment's `bin` folder on PATH.",
            )
        return None

    def stop(self, job_id: str) -> None:
        """Ask a job to end."""
        self._call(lambda client: _if_known(lambda: client.stop_job(self._ray_id(job_id))))

    def active_jobs(self) -> list[str]:
        """Ids of this store's jobs that are waiting or running."""
        listed = self._call(lambda client: client.list_jobs())
        active = (job.submission_id or "" for job in listed if _state(job.status.value) == "active")
        return [ray_id.removesuffix(self._suffix) for ray_id in active if ray_id.endswith(self._suffix)]

    def is_reachable(self) -> bool:
        """Whether the cluster answers now. Starts nothing."""
        return not self.problem()

    def problem(self) -> str:
        """Why the cluster does not answer now; empty if it does. Starts nothing."""
        if self.is_local:
            return "" if local_ray.find(self._session) is not None else "not running"
        try:
            self.active_jobs()
        except Unreachable as error:
            return f"{error.what} {error.why}"
        return ""

    def was_stopped(self) -> bool:
        """Whether the local head that was last used was ended on purpose, by `casa stop`."""
        return self.is_local and local_ray.was_stopped(self._session, self._local_session)

    def is_serving(self) -> bool:
        """Whether this store's endpoint runs in Ray Serve."""
        from infra.ray_clients import ServeClient

        applications = ServeClient(self.address()).get_serve_details()["applications"]
        return applications.get(self._application, {}).get("status") == "RUNNING"

    def end_serving(self) -> None:
        """Remove this store's endpoint from Ray Serve; other applications stay."""
        from infra.ray_clients import ServeClient

        serve = ServeClient(self.address())
        applications = serve.get_serve_details()["applications"]
        if self._application not in applications:
            return
        configs = [
            app.get("deployed_app_config") for n, app in applications.items() if n != self._application
        ]
        others = [config for config in configs if config]
        if others:
            serve.deploy_applications({"applications": others})
        else:
            serve.delete_applications()

    def forget(self) -> None:
        """Drop the connection: the next call looks for the cluster anew, or starts its local head again."""
        self._client = None

    def _ray_id(self, job_id: str) -> str:
        return job_id + self._suffix

    def _info(self, job_id: str) -> Any:
        return self._call(lambda client: _if_known(lambda: client.get_job_info(self._ray_id(job_id))))

    def _call(self, action: Callable[[JobsClient], T]) -> T:
        try:
            if self._client is None:
                from infra.ray_clients import JobsClient

                self._client = JobsClient(self.address())
            with self._answer.waiting():
                return action(self._client)
        except RuntimeError as error:
            if isinstance(error, ClusterError):
                raise
            refusal = JobExists if "already exists" in str(error) else ClusterError
            raise refusal("Ray refused the request.", str(error).strip()[-2000:]) from None


def _if_known(request: Callable[[], T]) -> T | None:
    """The answer to a request about a job; ``None`` if the cluster has no record of the job."""
    try:
        return request()
    except RuntimeError as error:
        if "does not exist" in str(error):
            return None
        raise


def _state(status: str) -> JobState:
    if status in ("PENDING", "RUNNING"):
        return "active"
    if status in ("SUCCEEDED", "STOPPED"):
        return "succeeded" if status == "SUCCEEDED" else "stopped"
    return "failed"
