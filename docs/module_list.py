"""Writes docs/modules.md: one line per module, its docstring's first sentence.

python docs/module_list.py    # writes the list anew; a test fails when it is stale
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "modules.md"
PACKAGES = ("casa", "casa_core", "pipelines", "serve", "infra")
BEGIN, END = "<!-- modules: begin -->", "<!-- modules: end -->"


def modules() -> Iterator[Path]:
    """Every module with something in it, by folder, relative to the repository."""
    paths = (
        path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.read_text().strip()
    )
    yield from sorted(
        (path.relative_to(ROOT) for path in paths), key=lambda p: (PACKAGES.index(p.parts[0]), p)
    )


def summary(module: Path) -> str:
    """The first paragraph of a module's docstring on one line.

    Raises:
        ValueError: For a module without a docstring.
    """
    docstring = ast.get_docstring(ast.parse((ROOT / module).read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{module} has no docstring to be listed by")
    return " ".join(docstring.split("\n\n")[0].split()).replace("``", "`")


def listing() -> str:
    """The list as Markdown, a heading a folder."""
    lines: list[str] = []
    folder = None
    for module in modules():
        if module.parent != folder:
            folder = module.parent
            lines += ["", f"**{folder}/**", ""]
        lines.append(f"- `{module.name}`: {summary(module)}")
    return "\n".join(lines).strip()


def replaced(document: str) -> str:
    """The document with the list as it should be."""
    before, rest = document.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{listing()}\n\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(replaced(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{DOCUMENT} lists {sum(1 for _ in modules())} modules")
