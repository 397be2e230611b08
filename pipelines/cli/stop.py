"""``casa stop``: end what runs for a store."""

from __future__ import annotations

from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption
from pipelines.cli.show.format import print_json


def stop(store: StoreOption = DEFAULT_STORE, json_: JsonOption = False) -> None:
    """End the endpoint, the jobs and the local Ray head of a store. Artifacts and checkpoints stay.

    On a cluster that is not ours, only this run's jobs and its endpoint are ended.

    Examples:

      casa stop

      casa stop --store /data/runs
    """
    from pipelines.cli.shared.run_handle import stop_run

    ended = stop_run(store)
    if json_:
        print_json(ended)
        return
    parts = [f"{len(ids)} {what}" for what, ids in ended.items() if ids]
    print(f"Ended {', '.join(parts)}." if parts else "Nothing was running.")
