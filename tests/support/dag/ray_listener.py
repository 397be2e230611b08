"""A job that uses what Ray offers and stays: a task, a detached actor, a process that an actor started."""

import subprocess
import time

import ray


@ray.remote(num_cpus=0)
class Starter:
    def start(self) -> int:
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid


@ray.remote(num_cpus=0)
def wait() -> None:
    time.sleep(600)


if __name__ == "__main__":
    ray.init(namespace="test")
    starter = Starter.options(name="starter", lifetime="detached").remote()
    ray.get(starter.start.remote())
    waiting = wait.remote()
    print("everything runs", flush=True)
    ray.get(waiting)
