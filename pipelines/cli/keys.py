"""``casa keys``: the API keys that an endpoint asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.shared.options import JsonOption
from pipelines.cli.show.format import print_json

if TYPE_CHECKING:
    from infra.api_keys import ApiKey

app = typer.Typer(
    no_args_is_help=True,
    help="""Make and withdraw the API keys of an endpoint.

    The file holds hashes of keys and never a key. An endpoint whose recipe names it (deploy.access.keys)
    reads it again within a second of a change.

    Examples:

      casa keys add alice --file /etc/casa/keys.jsonl --requests-per-minute 60

      casa keys list --file /etc/casa/keys.jsonl

      casa keys remove alice --file /etc/casa/keys.jsonl

      casa run my.yaml --set deploy.access.keys=/etc/casa/keys.jsonl
    """,
)
FileOption = Annotated[Path, typer.Option("--file", help="The file of keys.", dir_okay=False)]
NameArgument = Annotated[str, typer.Argument(help="Whose key it is; endpoints write it into their logs.")]


@app.command("add")
def add(
    name: NameArgument,
    file: FileOption,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Calls it may make; per replica; no bound by default.")
    ] = None,
    live_sessions: Annotated[
        int | None,
        typer.Option(min=0, help="Live sessions it may have; per replica; no bound by default."),
    ] = None,
) -> None:
    """Make a key and print it, this once; the file keeps its hash.

    Examples:

      casa keys add alice --file keys.jsonl

      CASA_API_KEY=$(casa keys add me --file keys.jsonl) casa ask cat.png "A cat?"
    """
    from casa_core.errors import ConfigError
    from infra.api_keys import make_key

    keys = _keys(file) if file.exists() else []
    if any(key.name == name for key in keys):
        raise ConfigError(
            f"There is a key for {name} already.",
            "A key is stored as its hash only and cannot be shown again.",
            f"Remove it first, `casa keys remove {name} --file {file}`, or choose another name.",
        )
    secret, stored = make_key(name, requests_per_minute=requests_per_minute, live_sessions=live_sessions)
    _write(file, [*keys, stored])
    print(secret)


@app.command("list")
def list_(file: FileOption, json_: JsonOption = False) -> None:
    """Show whose keys there are, since when, and their shares.

    Examples:

      casa keys list --file keys.jsonl
    """
    keys = _keys(file)
    if json_:
        print_json([key.model_dump(exclude={"sha256"}) for key in keys])
        return
    for key in keys:
        calls = f"{key.requests_per_minute} calls per minute" if key.requests_per_minute else "any calls"
        live = "any" if key.live_sessions is None else str(key.live_sessions)
        print(f"{key.name}: since {key.created}, {calls}, {live} live sessions")


@app.command("remove")
def remove(name: NameArgument, file: FileOption) -> None:
    """Withdraw a key: endpoints refuse it within a second.

    Examples:

      casa keys remove alice --file keys.jsonl
    """
    from casa_core.errors import ConfigError

    keys = _keys(file)
    kept = [key for key in keys if key.name != name]
    if len(kept) == len(keys):
        names = ", ".join(key.name for key in keys) or "none"
        raise ConfigError(
            f"There is no key for {name}.", f"There are keys for: {names}.", "Give one of these."
        )
    _write(file, kept)
    print(f"{name}: withdrawn")


def _keys(file: Path) -> list[ApiKey]:
    from infra.api_keys import read_keys

    return read_keys(file)


def _write(file: Path, keys: list[ApiKey]) -> None:
    from infra.api_keys import as_text
    from pipelines.storage.atomic import write_whole

    write_whole(file, as_text(keys), parents=True)
