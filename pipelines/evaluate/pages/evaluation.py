"""``index.html`` of an evaluation: scores beside published ones, what they depend on, every answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from casa_core.errors import CasaError
from pipelines.evaluate.pages import thumbnails
from pipelines.evaluate.pages.sections import benchmark_section, scores_section
from pipelines.evaluate.pages.thumbnails import SHOWN, Thumbnails
from pipelines.evaluate.results import BenchmarkResult, read_result, read_samples, result_folders
from pipelines.evaluate.tables import TableQuestions
from pipelines.html.document import asset, document, script
from pipelines.html.tags import Html, tag
from pipelines.storage.atomic import write_whole
from pipelines.storage.uri import Folder

PAGE = "index.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One benchmark on the page.

    Attributes:
        pictures: Those of the questions that are shown with theirs.
        missing: Why there are none; empty where there are.
    """

    result: BenchmarkResult
    samples: Sequence[Mapping[str, Any]]
    pictures: Thumbnails
    missing: str = ""


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
    return Shown(result=result, samples=samples, pictures=found, missing=reason)


def render(shown: Sequence[Shown]) -> str:
    """The page as one HTML document that needs no network."""
    results = [one.result for one in shown]
    name = results[0].checkpoint["name"]
    links = (tag("a", one.title, href=f"#benchmark-{one.benchmark}") for one in results)
    header = tag(
        "header",
        tag("p", "Evaluation", class_="kicker"),
        tag("h1", name),
        tag("p", _subtitle(results), class_="subtitle"),
        _mixed(results),
        tag("nav", *links, aria_label="Benchmarks"),
    )
    sections = [scores_section(results)]
    sections += [benchmark_section(one.result, one.samples, one.pictures, one.missing) for one in shown]
    return page(f"{name}: evaluation", header, tag("main", *sections))


def page(title: str, *body: object) -> str:
    """A document with the style and the scripts of these pages."""
    style = asset("pipelines.html", "report.css") + asset("pipelines.evaluate.pages", "pages.css")
    browse = tag("script", Html(asset("pipelines.evaluate.pages", "browse.js")))
    return document(title, style, *body, script(), browse)


def _subtitle(results: Sequence[BenchmarkResult]) -> str:
    questions = sum(one.questions for one in results)
    dates = sorted({one.date[:10] for one in results})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"{len(results)} benchmark{'s' * (len(results) != 1)}, {questions:,} questions, {when}."


def _mixed(results: Sequence[BenchmarkResult]) -> Html:
    """A warning where results of several checkpoints lie in one folder."""
    found = {one.checkpoint["fingerprint"]: one.checkpoint["folder"] for one in results}
    if len(found) < 2:
        return Html("")
    what = "These results are not of one model: checkpoint, type or code differ between benchmarks"
    return tag("p", f"{what} ({', '.join(one[:12] for one in found)}).", class_="warning")
