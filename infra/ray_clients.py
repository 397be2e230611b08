"""HTTP clients of a Ray cluster, for its jobs and for Serve: at the address they are given, with time-outs.

Ray's own client of jobs lets ``RAY_API_SERVER_ADDRESS`` and ``RAY_ADDRESS`` replace the address that it is
given, and neither of Ray's clients ends a wait for an answer.
"""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import urlsplit

import ray
import requests
from ray.dashboard.modules.dashboard_sdk import SubmissionClient
from ray.dashboard.modules.job.sdk import JobSubmissionClient
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.exceptions import AuthenticationError

from casa_core.errors import ClusterError
from infra.ray_errors import Busy, Unreachable

logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)  # a line for each package
CONNECT_S = 5.0
"""Seconds to connect."""
ANSWER_S = 30.0
"""Seconds to wait for an answer; a head waits up to 10 for an agent that takes a job."""
BUSY_S = 20.0
"""Seconds within which a request that a server's error answered is sent again."""
UPLOAD_S = 600.0
"""Seconds to send a package of code."""


class _BoundedClient(SubmissionClient):
    """Ends every wait, and turns what goes wrong on the way into errors that name the address.

    Raises:
        Unreachable: If there is no answer in time, or another program's.
        Busy: If the answer is a server's error, for ``BUSY_S`` seconds.
        ClusterError: If the cluster wants a token, or another one.
    """

    def _do_request(self, method: str, endpoint: str, **arguments: Any) -> requests.Response:
        deadline, pause_s = time.monotonic() + BUSY_S, 0.5
        while True:
            try:
                return self._request_once(method, endpoint, **arguments)
            except Busy:
                if time.monotonic() + pause_s > deadline:
                    raise
            time.sleep(pause_s)
            pause_s *= 2

    def _open(self, address: str) -> None:
        """What Ray's client does first; it looks for the token that the environment asks for."""
        try:
            SubmissionClient.__init__(self, address)
        except AuthenticationError as error:
            raise _refused(address, error) from None

    def _request_once(self, method: str, endpoint: str, **arguments: Any) -> requests.Response:
        # `requests` bounds the sending of a body by the time-out to connect.
        sending_s = UPLOAD_S if arguments.get("data") is not None else CONNECT_S
        if self._is_local:
            arguments["proxies"] = {"no_proxy": "127.0.0.1,::1,localhost"}
        try:
            response = super()._do_request(method, endpoint, timeout=(sending_s, ANSWER_S), **arguments)
        except requests.exceptions.RequestException as error:
            raise self._unreachable(error) from None
        except AuthenticationError as error:
            raise _refused(self._address, error) from None
        # A head answers 500, too, where its agent refused a request with a 4xx: that is no passing state.
        if response.status_code >= 500 and "status code 4" not in response.text:
            raise Busy(
                f"The Ray cluster at {self._address} takes no requests at the moment.",
                f"Status {response.status_code}: {response.text.strip()[-2000:].rstrip('.')}.",
                "Run again to resume once it has recovered; `casa status` shows what is done.",
            )
        return response

    @property
    def _is_local(self) -> bool:
        return urlsplit(self._address).hostname in ("127.0.0.1", "::1", "localhost")

    def _require_ray(self, min_version: str) -> None:
        try:
            self._check_connection_and_version(min_version)
        except (requests.exceptions.RequestException, KeyError, TypeError, ValueError) as error:
            raise Unreachable(
                f"What answers at {self._address} is no Ray dashboard.",
                f"Its answer to /api/version cannot be read: {type(error).__name__}.",
                "`where.ray.address` is the dashboard's address, http://host:8265.",
            ) from None

    def _unreachable(self, error: requests.exceptions.RequestException) -> Unreachable:
        late = isinstance(error, requests.exceptions.Timeout)
        why = f"There was no answer within {ANSWER_S:.0f} s" if late else _cause(error)
        if isinstance(error, requests.exceptions.ConnectTimeout):
            why = f"No connection came about within {CONNECT_S:.0f} s"
        return Unreachable(
            f"The Ray cluster at {self._address} does not answer.",
            f"{why}.",
            "Check `where.ray.address` and that its head runs. Run again to go on from here; a local head "
            "that has ended is started again."
            if self._is_local
            else "Check the address (`where.ray.address`, --address) and that the cluster's head runs. Run "
            "again to go on from here.",
        )


def _cause(error: requests.exceptions.RequestException) -> str:
    """What the system said, out of the layers of clients that each wrap it in a sentence of their own."""
    inner: Any = error
    while isinstance(inner, Exception) and (deeper := getattr(inner, "reason", None) or inner.args[-1:]):
        inner = deeper[0] if isinstance(deeper, tuple) else deeper
    said = str(inner).splitlines()[0].rstrip(".")
    return said.partition("): ")[2] or said


def _refused(address: str, error: AuthenticationError) -> ClusterError:
    return ClusterError(
        f"The Ray cluster at {address} refused its token, or there is none.",
        f"{str(error).splitlines()[0].rstrip('.')}.",
        "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's.",
    )


class JobsClient(_BoundedClient, JobSubmissionClient):
    """Ray's client of jobs.

    Args:
        address: URL of the dashboard.
    """

    def __init__(self, address: str) -> None:
        self._client_ray_version = ray.__version__
        # JobSubmissionClient's own would put the environment's address in the place of this one.
        self._open(address)
        self._require_ray("2.0")

    def node_states(self) -> dict[str, str]:
        """State of each of the cluster's nodes, ``ALIVE`` or ``DEAD`` and why, by address and id."""
        answer = self._do_request("GET", "/api/v0/nodes?limit=10000")
        if answer.status_code != 200:
            self._raise_error(answer)
        listed = answer.json()["data"]["result"]["result"]
        return {
            f"{node['node_ip']} ({node['node_id'][:8]})": " ".join(
                filter(None, [node["state"], node["state_message"]])
            )
            for node in listed
        }


class ServeClient(_BoundedClient, ServeSubmissionClient):
    """Ray's client of Serve.

    Args:
        address: URL of the dashboard.
    """

    def __init__(self, address: str) -> None:
        self._open(address)
        self._require_ray("2.0")
