"""The report as one HTML page: header, sections in reading order, footer."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.html.document import asset, document, script
from pipelines.html.layout import anchor
from pipelines.html.tags import Html, tag
from pipelines.report.sections.captions import captions
from pipelines.report.sections.gallery import gallery
from pipelines.report.sections.lineage import lineage
from pipelines.report.sections.packing import packing
from pipelines.report.sections.provenance import provenance
from pipelines.report.sections.quarantine import quarantine
from pipelines.report.sections.results import headline, results
from pipelines.report.sections.run_artifacts import Run
from pipelines.report.sections.training import training

SECTIONS: dict[str, Callable[[Run], Html]] = {
    "Results": results,
    "Live captions": captions,
    "Gallery": gallery,
    "Training": training,
    "Packing": packing,
    "Quarantine": quarantine,
    "Lineage": lineage,
    "How it was made": provenance,
}
"""Title → section, in reading order."""


def render(run: Run) -> str:
    """The report as one HTML document."""
    links = (tag("a", title, href=f"#{anchor(title)}") for title in SECTIONS)
    header = tag(
        "header",
        tag("p", "Run report", class_="kicker"),
        tag("h1", run.model_name),
        tag("p", _subtitle(run), class_="subtitle"),
        headline(run),
        tag("nav", *links),
    )
    sections = [section(run) for section in SECTIONS.values()]
    title, body = f"{run.model_name}: report", (header, tag("main", *sections), _footer(run))
    return document(title, asset("pipelines.html", "report.css"), *body, script())


def _subtitle(run: Run) -> str:
    trained = run.get("train")
    packed = run.get("pack")
    sources = packed.settings.get("sources", []) if packed else []
    backbone = trained.settings.get("model", {}).get("backbone") if trained else None
    words = ["A vision-language model"]
    words.append(f"on the {backbone} backbone" if backbone else "")
    words.append(f"trained on {' and '.join(sources)}" if trained and sources else "")
    return " ".join(word for word in words if word) + "."


def _footer(run: Run) -> Html:
    begun = [stage.started for stage in run.stages.values() if stage.started]
    when = f"First stage begun {min(begun):%Y-%m-%d %H:%M} UTC. " if begun else ""
    return tag(
        "footer", tag("p", f"{when}Every number is read from the run's artifacts; the file needs no network.")
    )
