"""The ``casa`` command, which first makes sure that the packages it consists of are this project's.

Their names are common ones: another distribution may hold a package ``serve`` too, and pip lets the later one
overwrite the earlier one's files without a word.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

INTERRUPTED = 130
PACKAGES = ("casa_core", "pipelines", "serve", "infra")


def main() -> None:
    """Entry point of the ``casa`` script and of ``python -m casa``."""
    root = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        if (problem := foreign(name, root)) is not None:
            print(problem, file=sys.stderr)
            raise SystemExit(2)
    try:
        from pipelines.cli import main as run

        run()
    except KeyboardInterrupt:  # outside a command, as while packages are imported
        print("\nInterrupted.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def foreign(name: str, root: Path) -> str | None:
    """What is wrong with a package's place, as what, why and what to try; ``None`` where it is ours.

    Args:
        name: The package.
        root: The folder that this project's packages lie in.
    """
    spec = importlib.util.find_spec(name)
    places = [] if spec is None else [Path(each) for each in spec.submodule_search_locations or ()]
    if spec is not None and spec.origin is not None and root / name in places:
        return None
    if spec is None or root / name in places:
        what = f"The package `{name}` of this project is missing in {root}."
        why = "Another distribution with a package of this name was removed, or overwrote it."
    else:
        what = f"The package `{name}` is another project's: {places[0] if places else spec.origin}."
        why = f"It comes before this project's in {root} on Python's path, and both have this name."
    remedy = "Install casa into a virtual environment of its own: pip install --force-reinstall casa."
    return f"{what}\n{why}\ntry: {remedy}"


if __name__ == "__main__":
    main()
