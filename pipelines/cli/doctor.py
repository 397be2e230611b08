"""``casa doctor``: is everything there?"""

from __future__ import annotations

import contextlib
import importlib.util
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption
from pipelines.cli.show.format import print_json

if TYPE_CHECKING:
    from infra.doctor import Check
    from pipelines.storage.remote_path import RemotePath
    from pipelines.storage.uri import Folder

MARKS = {"ok": "[green]✓", "optional": "[yellow]○", "problem": "[red]✗"}


def doctor(
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Check a Ray cluster instead, with tasks on each of its nodes.")
    ] = False,
    address: Annotated[
        str,
        typer.Option(
            help="The cluster: its dashboard, http://host:8265; `local` for the store's own head; `auto` for "
            "the one that this machine belongs to.",
        ),
    ] = "auto",
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Check this machine, and say what each missing part costs you. Ends with 1 if a run cannot work.

    With --cluster: versions and code on every node, GPUs, CPUs by quota, shared memory, Ray's disks, clocks,
    the store from every node, and a sum over all nodes as training makes them. It takes a minute.

    Examples:

      casa doctor

      casa doctor --cluster --address http://head:8265 --store s3://bucket/runs

      casa doctor --store s3://bucket/runs

      casa doctor --json | jq '.[] | select(.level != "ok")'
    """
    if cluster:
        from pipelines.cluster.ask import ask_cluster
        from pipelines.cluster.checks import cluster_checks

        checks = cluster_checks(ask_cluster(address, store), str(store))
    else:
        checks = _machine_checks(store)
    if json_:
        print_json([asdict(check) for check in checks])
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, show_header=False)
        for check in checks:
            table.add_row(MARKS[check.level], check.name, escape(check.found), f"[dim]{escape(check.cost)}")
            if check.level != "ok" and check.remedy:
                table.add_row("", "", "", f"[dim]→ {escape(check.remedy)}")
        Console().print(table)
    if any(check.level == "problem" for check in checks):
        raise typer.Exit(1)


def _machine_checks(store: Folder) -> list[Check]:
    from infra.doctor import run_checks
    from pipelines.storage.host import session_folder

    checks = run_checks(session_folder(store).parent)
    if not isinstance(store, Path):
        checks.append(_store(store))
    after_device = next(index for index, check in enumerate(checks) if check.name == "device") + 1
    checks[after_device:after_device] = _attention()
    return checks


def _store(store: RemotePath) -> Check:
    """Whether a store elsewhere can be written, and lets one of two writers of the same object win."""
    from casa_core.errors import StoreError
    from infra.doctor import Check

    probe, wins = store / "session" / f"doctor-{uuid.uuid4().hex}", 0
    try:
        with contextlib.suppress(FileExistsError):
            for _ in range(2):
                probe.write_bytes(b"", only_new=True)
                wins += 1
        probe.unlink()
    except StoreError as error:
        return Check("store", "problem", error.what, error.why, error.remedy)
    if wins == 1:
        return Check("store", "ok", f"{store.place} can be written")
    cost = "two runs at once would overwrite each other: its server ignores If-None-Match"
    return Check("store", "problem", store.place, cost, "use a server that keeps conditional writes")


def _attention() -> list[Check]:
    """The attention backend of this machine, for the dtype a model would have here and the real models' head
    size. Empty without torch, which an earlier check reports."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    from casa_core.fusion.backends import Backend, choose_backend, unsupported_reason
    from infra.doctor import check_attention

    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if has_gpu else torch.device("cpu")
    dtype, type_name = (torch.bfloat16, "bf16") if has_gpu else (torch.float32, "fp32")
    obstacles = {
        name: reason[0] if (reason := unsupported_reason(name, device, dtype, 128)) else None
        for name in get_args(Backend)
        if name != "auto"
    }
    chosen = choose_backend("auto", device, dtype, 128)
    return [check_attention(chosen, f"{type_name} on {device.type}", obstacles, has_gpu)]
