"""Whether processes on a cluster's nodes reach each other as training's do: a sum over all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

ANSWER_S = 60.0
"""Seconds that the sum may take, torch's import among others."""
ELEMENTS = 1 << 20
"""Float32 numbers that are summed: 4 MiB, beyond what fits a connection's buffers."""


def all_reduce(nodes: Sequence[str], backend: Literal["gloo", "nccl"]) -> str:
    """Sum a tensor over one process per node, on a GPU with ``nccl``.

    Args:
        nodes: Ids of Ray's nodes.

    Returns:
        What went wrong, or an empty text.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor: Any = ray.remote(num_cpus=0, num_gpus=1 if backend == "nccl" else 0, max_restarts=0)(Member)
    members: list[Any] = [
        actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in nodes
    ]
    deadline = time.monotonic() + ANSWER_S
    try:
        address, port = ray.get(members[0].host.remote(), timeout=ANSWER_S)
        asked = [
            member.sum_of_ranks.remote(backend, address, port, rank, len(members))
            for rank, member in enumerate(members)
        ]
        sums = ray.get(asked, timeout=max(1.0, deadline - time.monotonic()))
    except GetTimeoutError:
        return f"The sum was not there within {ANSWER_S:.0f} s."
    except RayError as error:
        return str(error).strip().splitlines()[-1]
    finally:
        for member in members:
            ray.kill(member)
    expected = sum(range(len(members)))
    wrong = [value for value in sums if value != expected]
    return f"The sum of ranks is {wrong[0]:g} on a node, and should be {expected}." if wrong else ""


class Member:
    """One node's process."""

    def host(self) -> tuple[str, int]:
        """Open the group's rendezvous here; its address and port."""
        from infra.torch_rendezvous import host_store

        return host_store(ANSWER_S)

    def sum_of_ranks(self, backend: str, address: str, port: int, rank: int, size: int) -> float:
        """Join the group, and sum every member's rank."""
        import torch
        from torch import distributed
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        store = TCPStore(address, port, timeout=timedelta(seconds=ANSWER_S))
        distributed.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=ANSWER_S)
        )
        try:
            device = "cuda:0" if backend == "nccl" else "cpu"
            numbers = torch.full((ELEMENTS,), float(rank), device=device)
            distributed.all_reduce(numbers)
            least, most = numbers.min().item(), numbers.max().item()
            return least if least == most else float("nan")
        finally:
            distributed.destroy_process_group()
