"""``index.html`` of an evaluation: scores beside published ones, what they depend on, every answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from casa_core.errors import CasaError
from pipelines.evaluate.kept.files import read_samples
from pipelines.evaluate.pages import thumbnails
from pipelines.evaluate.pages.sections import Shown, benchmark_section, scores_section
from pipelines.evaluate.pages.thumbnails import SHOWN
from pipelines.evaluate.results import read_result, result_folders
from pipelines.evaluate.tables import TableQuestions
from pipelines.html.document import asset, document, script
from pipelines.html.tags import Html, tag
from pipelines.storage.atomic import write_whole
from pipelines.storage.uri import Folder

PAGE = "index.html"


def write_page(folder: Folder, tables: Sequence[TableQuestions] = (), pictures: int = SHOWN) -> Folder:
    """Write the page over all benchmarks whose results are below a folder.

    Args:
        folder: Output of `casa evaluate`.
        tables: Open tables of some of the benchmarks; others are opened again where pictures are missing.
        pictures: Questions of each benchmark that are shown with their pictures.

    Raises:
        DataError: If there are no results.

    Returns:
        The page's path.
    """
    opened = {table.benchmark.name: table for table in tables}
    shown = [_shown(one, opened, pictures) for one in result_folders(folder)]
    write_whole(folder / PAGE, render(shown))
    return folder / PAGE


def _shown(folder: Folder, opened: Mapping[str, TableQuestions], count: int) -> Shown:
    result, samples = read_result(folder), read_samples(folder)
    digest, wanted = result.data["digest"], thumbnails.choose(samples, count)
    known = thumbnails.kept(folder, digest)
    missing = [index for index in wanted if index not in known]
    reason = ""
    if missing:
        try:
            tables = opened.get(result.benchmark) or thumbnails.tables_of(result)
            known |= thumbnails.read(tables, missing)
        except CasaError as error:  # the page stands without pictures, and says why there are none
            reason = " ".join(str(part) for part in error.args[:2])
        else:
            thumbnails.keep(folder, digest, {index: known[index] for index in wanted if index in known})
    found = {index: known[index] for index in wanted if known.get(index)}
    return Shown(name=folder.name, result=result, samples=samples, pictures=found, missing=reason)


def render(shown: Sequence[Shown]) -> str:
    """The page as one HTML document that needs no network."""
    name = shown[0].result.checkpoint["name"]
    links = (tag("a", one.result.title, href=f"#{one.anchor}") for one in shown)
    header = tag(
        "header",
        tag("p", "Evaluation", class_="kicker"),
        tag("h1", name),
        tag("p", _subtitle(shown), class_="subtitle"),
        _mixed(shown),
        tag("nav", *links, aria_label="Benchmarks"),
    )
    sections = [scores_section(shown), *(benchmark_section(one) for one in shown)]
    return page(f"{name}: evaluation", header, tag("main", *sections))


def page(title: str, *body: object) -> str:
    """A document with the style and the scripts of these pages."""
    style = asset("pipelines.html", "report.css") + asset("pipelines.evaluate.pages", "pages.css")
    browse = tag("script", Html(asset("pipelines.evaluate.pages", "browse.js")))
    return document(title, style, *body, script(), browse)


def _subtitle(shown: Sequence[Shown]) -> str:
    questions = sum(one.result.questions for one in shown)
    dates = sorted({one.result.date[:10] for one in shown})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"{len(shown)} benchmark{'s' * (len(shown) != 1)}, {questions:,} questions, {when}."


def _mixed(shown: Sequence[Shown]) -> Html:
    """A warning where results of several checkpoints lie in one folder, in the same setting."""
    found: dict[str, set[str]] = defaultdict(set)
    for one in shown:
        found[one.name.partition("@")[2]].add(one.result.checkpoint["fingerprint"][:12])
    several = [", ".join(sorted(prints)) for prints in found.values() if len(prints) > 1]
    if not several:
        return Html("")
    what = "These results are not of one model: checkpoint, type or code differ between benchmarks"
    return tag("p", f"{what} ({'; '.join(several)}).", class_="warning")
