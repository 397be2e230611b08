"""``casa serve``: checkpoints as an endpoint, by this process alone."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.cli.shared.options import DEFAULT_STORE, JsonOption, StoreOption
from pipelines.cli.show.format import print_json_line

if TYPE_CHECKING:
    from pipelines.storage.uri import Folder

SERVER = "serve.standalone"
"""Module of the server: the command line and serving meet at a checkpoint and at this name."""


CheckpointArgument = Annotated[
    list[str],
    typer.Argument(
        help="Folder of a checkpoint or of a train artifact (local or s3://), or a train stage of the "
        "store's latest run, such as `train`. Of several, clients choose one by its name, the folder's "
        "or NAME=CHECKPOINT.",
        metavar="CHECKPOINT...",
    ),
]
PortOption = Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)]
NameOption = Annotated[
    str | None,
    typer.Option(help="What clients put in `model` for the first; by default the folder's name."),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile decode steps first: a slow start, fast answers.")
]
GraphsOption = Annotated[
    bool, typer.Option("--graphs", help="Record steps as CUDA graphs; not with --compile.")
]
KeysOption = Annotated[
    Path | None, typer.Option(help="Ask for API keys of this file, which `casa keys` makes.")
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the recipe's section deploy: limits.sessions=4. May be repeated.",
    ),
]
LogOption = Annotated[Literal["text", "json"], typer.Option(help="Form of the log lines.")]


def serve(
    checkpoints: CheckpointArgument,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    port: PortOption = 8000,
    name: NameOption = None,
    dtype: Annotated[str, typer.Option(help="auto (as stored), fp32 or bf16.")] = "auto",
    compile_: CompileOption = False,
    graphs: GraphsOption = False,
    quantize: Annotated[str, typer.Option(help="none, or int8: on CPUs.")] = "none",
    keys: KeysOption = None,
    set_: SettingOption = None,
    log: LogOption = "text",
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
) -> None:
    """Serve checkpoints: questions about pictures, live captions, the live page, metrics. Ctrl-C ends it.

    It needs no run and no cluster. `casa run` serves on Ray instead, with replicas that come and go. Of
    several checkpoints the first is loaded at the start, the others when they are asked for.

    Examples:

      casa serve runs/train/4a84…/model

      casa serve train --port 8001 --name my-model

      casa serve small=runs/train/4a84… large=runs/train/77c1… --set models_per_engine=1

      casa serve s3://bucket/runs/train/4a84… --dtype bf16 --compile

      casa serve model --host 0.0.0.0 --keys keys.jsonl --set limits.sessions=4 --log json
    """
    from pipelines.cli.shared.artifacts import find_artifact
    from pipelines.dag.checkpoints import find_checkpoint
    from pipelines.deploy.endpoint import is_loopback
    from pipelines.recipe.load import load_deploy

    found = _found(checkpoints, name, store)
    own, *others = found
    given = {"dtype": dtype, "compile": compile_, "graphs": graphs, "quantize": quantize}
    overrides = [*(set_ or ()), *([f"access.keys={keys.absolute()}"] if keys is not None else [])]
    named = {"model_name": own, "models": {other: str(found[other]) for other in others}}
    deploy = load_deploy({**named, **given}, overrides)
    settings = {**deploy.model_dump(mode="json"), "log": log, "loopback_only": is_loopback(host)}
    further = {  # those of --set, too
        other: find_checkpoint(find_artifact(place, store)) for other, place in deploy.models.items()
    }
    _serve({own: found[own], **further}, settings, host, port, json_)


def _found(checkpoints: list[str], name: str | None, store: Folder) -> dict[str, Folder]:
    """The checkpoints by their names.

    Raises:
        ConfigError: One is not there, or two have one name.
        StoreError: One is none.
    """
    from casa_core.errors import ConfigError
    from pipelines.cli.shared.artifacts import find_artifact
    from pipelines.dag.checkpoints import find_checkpoint, model_name

    found: dict[str, Folder] = {}
    for one in checkpoints:
        named, equals, place = one.partition("=")
        if not equals or re.search(r"[/:]", named):  # a path may have the sign, too
            named, place = "", one
        folder = find_checkpoint(find_artifact(place, store))
        own = named or (name if not found and name is not None else model_name(folder))
        if own in found:
            raise ConfigError(
                f"Two checkpoints are called {own}.",
                f"{found[own]} and {folder}.",
                "Name one: `casa serve NAME=CHECKPOINT`.",
            )
        found[own] = folder
    return found


def _serve(
    checkpoints: dict[str, Folder], settings: dict[str, Any], host: str, port: int, as_json: bool
) -> None:
    from pipelines.dag.checkpoints import local_checkpoint

    began = time.monotonic()
    server = importlib.import_module(SERVER)
    listener = server.open_port(host, port)
    (name, own), *others = checkpoints.items()
    url = _url(host, listener.getsockname()[1])
    work = "Loading and compiling" if settings["compile"] else "Loading"
    print(f"{work} {own} …", file=sys.stderr, flush=True)

    def ready() -> None:
        if as_json:
            print_json_line({"url": url, "model": name, "checkpoint": str(own)})
        else:
            _greet(url, name, time.monotonic() - began, keyed=settings["access"]["keys"] is not None)
            if others:
                print(f"  also        {', '.join(other for other, _ in others)}", flush=True)

    with listener, suppress(KeyboardInterrupt), ExitStack() as copies:
        settings["models"] = {
            other: {"folder": str(copies.enter_context(local_checkpoint(folder))), **_identity(folder)}
            for other, folder in others
        }
        local = copies.enter_context(local_checkpoint(own))
        identity = {"model_folder": str(local), "checkpoint": _identity(own)["fingerprint"]}
        server.serve({**settings, **identity}, listener, ready)
    print("Ended.", file=sys.stderr)


def _identity(checkpoint: Folder) -> dict[str, str]:
    """The fingerprint of the training run that a checkpoint lies in; empty where it lies in none."""
    from pipelines.dag.artifact import read_manifest

    manifest = read_manifest(checkpoint.parent)
    return {"fingerprint": "" if manifest is None else manifest["fingerprint"]}


def _url(host: str, port: int) -> str:
    """As a client on this machine writes it."""
    named = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{named}]:{port}" if ":" in named else f"http://{named}:{port}"


def _greet(url: str, model: str, seconds: float, *, keyed: bool) -> None:
    from pipelines.text_format import duration

    question = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    bearer = " -H 'authorization: Bearer YOUR_KEY'" if keyed else ""
    print(
        f"{model} answers at {url} after {duration(seconds)}\n"
        f"  live page   {url}/\n"
        f"  metrics     {url}/metrics\n"
        f"  try         curl -s {url}/v1/chat/completions -H 'content-type: application/json'{bearer} "
        f"-d {shlex.quote(json.dumps(question))}\n"
        "Ctrl-C ends it.",
        flush=True,
    )
