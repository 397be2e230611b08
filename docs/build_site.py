"""Lays the documents out for the site, and builds it; ``make docs`` calls it.

python -m docs.build_site     # writes build/site, and fails where a link leads nowhere

``zensical.toml`` has the navigation. Documents lie in ``build/pages`` under the paths that they have in the
repository, so that their links hold as they stand. What they link to outside of the navigation comes with
them: Markdown as a page, other text as a page that shows it, a folder as a page that lists it, anything else
as a file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "pages"
CONFIG = ROOT / "zensical.toml"
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"(?ms)^ *```.*?^ *```|``.*?``|`[^`\n]*`")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".toml": "toml", ".sbatch": "bash"}
"""Suffix of a text file → language of its page; files without one here are copied."""


def entries(nav: list[Any]) -> Iterator[str]:
    """Paths of a navigation."""
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else entries(value)


def project() -> dict[str, Any]:
    """``zensical.toml``."""
    return tomllib.loads(CONFIG.read_text(encoding="utf-8"))["project"]


class Pages:
    """Documents under their own paths, with everything that they link to.

    Attributes:
        root: Where they are taken from.
        to: Where they are laid out.
        missing: Links that lead nowhere, as ``document: link``.
    """

    def __init__(self, root: Path, to: Path) -> None:
        self.root, self.to = root, to
        self.missing: list[str] = []
        self._laid: dict[str, str] = {}

    def lay(self, name: str) -> str:
        """Lay out a document, file or folder once; returns the path of what is there for it."""
        if name not in self._laid:
            source = self.root / name
            if source.is_dir():
                self._laid[name] = (
                    f"{name}/README.md" if (source / "README.md").is_file() else f"{name}/index.md"
                )
                self._lay_folder(name, source)
            elif source.suffix == ".md":
                self._laid[name] = name
                self._write(name, self._with_links(name, source.read_text(encoding="utf-8")))
            elif source.suffix in LANGUAGES or source.name == "Dockerfile":
                self._laid[name] = f"{name}.md"
                language = LANGUAGES.get(source.suffix, "docker")
                text = source.read_text(encoding="utf-8").rstrip("\n")
                self._write(f"{name}.md", f"# {name}\n\n````{language}\n{text}\n````\n")
            else:
                self._laid[name] = name
                (self.to / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, self.to / name)
        return self._laid[name]

    def _lay_folder(self, name: str, source: Path) -> None:
        if (source / "README.md").is_file():
            self.lay(f"{name}/README.md")
            return
        shown = sorted(
            path.name for path in source.iterdir() if path.is_file() and path.name != "__init__.py"
        )
        lines = [
            f"- [{file}]({self._relative(name + '/index.md', self.lay(f'{name}/{file}'))})" for file in shown
        ]
        self._write(self._laid[name], "\n".join([f"# {name}", "", *lines, ""]))

    def _with_links(self, name: str, text: str) -> str:
        """The text, its links to files and folders turned to what is laid out for them."""
        code = [match.span() for match in CODE.finditer(text)]

        def turned(link: re.Match[str]) -> str:
            if any(begin <= link.start() < end for begin, end in code):
                return link[0]
            target = (self.root / name).parent.joinpath(link[1]).resolve()
            if not target.exists() or not target.is_relative_to(self.root):
                self.missing.append(f"{name}: {link[1]}")
                return link[0]
            laid = self.lay(target.relative_to(self.root).as_posix())
            return self._relative(name, laid) + ((link[2] or "") if target.suffix == ".md" else "")

        return LINK.sub(turned, text)

    @staticmethod
    def _relative(document: str, target: str) -> str:
        return os.path.relpath(target, Path(document).parent)

    def _write(self, name: str, text: str) -> None:
        path = self.to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main() -> int:
    """Build the site; 1 where a link leads nowhere."""
    shutil.rmtree(PAGES, ignore_errors=True)
    pages = Pages(ROOT, PAGES)
    settings = project()
    for name in (*entries(settings["nav"]), *settings["extra_css"]):
        pages.lay(name)
    for link in pages.missing:
        print(f"no such file: {link}", file=sys.stderr)
    if pages.missing:
        return 1
    return subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=ROOT, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
