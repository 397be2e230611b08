"""A job with two training workers that add up their ranks, and print the addresses that they listen on."""

from __future__ import annotations

import json
import os

import psutil
import ray.train
import torch
import torch.distributed
from ray.train.torch import TorchTrainer

from infra.torch_rendezvous import BoundTorchConfig


def work() -> None:
    total = torch.tensor([float(ray.train.get_context().get_world_rank() + 1)])
    torch.distributed.all_reduce(total)
    connections = psutil.Process(os.getpid()).net_connections("tcp")
    listening = sorted({c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN})
    print("LISTENS " + json.dumps({"total": total.item(), "addresses": listening}), flush=True)
    torch.distributed.barrier()


if __name__ == "__main__":
    scaling = ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1})
    TorchTrainer(work, torch_config=BoundTorchConfig(backend="gloo"), scaling_config=scaling).fit()
