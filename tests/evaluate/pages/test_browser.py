"""What a person does with the page of an evaluation, in a real browser."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluate.comparison import compare_folders
from pipelines.evaluate.kept.files import read_samples
from pipelines.evaluate.pages.browsing import browser as browser_of
from pipelines.evaluate.pages.comparison import render
from pipelines.evaluate.pages.evaluation import page as whole_page
from pipelines.html.tags import tag
from tests.evaluate.pages.conftest import Written
from tests.support.evaluate.results import write_evaluation
from tests.support.serve.browser import Page

DRAWN = "#benchmark-drawn .browser"
WIDTHS = (1440, 768, 390)


@pytest.fixture
def page(browser: Any, evaluation: Written) -> Page:
    return opened(browser, evaluation.page)


def opened(browser: Any, path: Path) -> Page:
    browser.get_log("browser")
    browser.get(path.as_uri())
    return Page(browser, path.as_uri())


def started(page: Page, selector: str = DRAWN) -> None:
    """Scroll a table into view, as a reader does; it is drawn then."""
    page.script("document.querySelector(arguments[0]).scrollIntoView({behavior: 'instant'})", selector)
    page.wait(lambda: page.count(f"{selector} tbody tr"))


def choose(page: Page, name: str, value: str) -> None:
    page.driver.execute_script(
        "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', {bubbles: true}))",
        f"{DRAWN} [name={name}]",
        value,
    )


def column(page: Page, heading: str) -> list[str]:
    return page.texts(f'{DRAWN} tbody td[data-head="{heading}"]')


def test_the_worst_come_first_and_the_best_when_asked_for(page: Page):
    started(page)
    assert column(page, "score") == ["0", "none", "0"] + ["0"] * 22
    assert [cell[0] for cell in column(page, "answer")[:4]] == ["⚠", "⚠", "⚠", "✗"]
    choose(page, "order", "last")
    assert set(column(page, "score")) == {"1"}
    choose(page, "order", "index")
    assert page.texts(f"{DRAWN} tbody small")[0].startswith("0 · one")
    assert page.problems() == []


def test_leafing_shows_every_row_once(page: Page, evaluation: Written):
    started(page)
    seen: list[str] = []
    for sheet in range(6):
        seen += page.script(f"[...document.querySelectorAll('{DRAWN} tbody tr')].map((e) => e.innerText)")
        assert page.text(f"{DRAWN} output").startswith(
            f"{25 * sheet + 1} to {min(25 * sheet + 25, 130)} of 130; "
        )
        if sheet < 5:
            page.click(f"{DRAWN} [data-step='1']")
    assert len(seen) == 130
    assert not page.find(f"{DRAWN} [data-step='1']").is_enabled()


def test_answers_are_filtered_by_category_and_by_what_became_of_them(page: Page, evaluation: Written):
    started(page)
    samples = read_samples(evaluation.folder / "drawn")
    expected = {
        "failed": sum(bool(row["error"]) for row in samples),
        "right": sum(row["score"] == 1 for row in samples),
        "wrong": sum(row["score"] == 0 and not row["error"] for row in samples),
        "partly": 0,
        "empty": 1,
        "cut": 1,
    }
    labels = dict(
        zip(
            expected,
            ("Failed", "Right", "Wrong", "Partly right", "Empty", "Cut at the token limit"),
            strict=True,
        )
    )
    options = page.texts(f"{DRAWN} [name=kind] option")
    for kind, count in expected.items():
        assert f"{labels[kind]} ({count})" in options
        choose(page, "kind", kind)
        assert f" of {count};" in page.text(f"{DRAWN} output")
    choose(page, "kind", "wrong")
    choose(page, "category", "two")
    both = sum(row["score"] == 0 and not row["error"] and row["category"] == "two" for row in samples)
    assert f" of {both};" in page.text(f"{DRAWN} output")
    choose(page, "kind", "")
    choose(page, "category", "*")
    choose(page, "text", "BREAKS off")
    assert page.count(f"{DRAWN} tbody tr") == 2, "row 11 has no question and another reason"


def test_hostile_texts_are_shown_and_do_nothing(page: Page):
    started(page)
    choose(page, "text", "alert(")
    shown = column(page, "question")
    assert any("</script><script>alert('&\"')</script><b>\\u202e" in cell for cell in shown)
    assert page.count(f"{DRAWN} tbody b b") == 0
    assert page.problems() == []


def test_it_works_by_keyboard_alone(page: Page):
    started(page)
    page.script(f"document.querySelector('{DRAWN} [name=text]').focus()")
    page.keys("b", "r", "e", "a", "k", "s")
    page.wait(lambda: page.count(f"{DRAWN} tbody tr") == 2)
    page.keys(*["\ue003"] * 6)
    page.wait(lambda: page.count(f"{DRAWN} tbody tr") == 25)
    page.keys("\ue004")
    assert page.focused == "Next", "a button that leads nowhere is passed over"
    page.keys("\ue007")
    assert page.text(f"{DRAWN} output").startswith("26 to 50")


def test_published_scores_of_another_model_are_chosen(page: Page, evaluation: Written):
    names = page.texts("#beside option")
    wanted = "CASA-Qwen2_5-VL-3B (project page)"
    assert wanted in names
    page.driver.execute_script(
        "const e = document.getElementById('beside'); e.value = arguments[0];"
        "e.dispatchEvent(new Event('input', {bubbles: true}))",
        wanted,
    )
    score = next(
        f"{one['score']:g}"
        for one in evaluation.results["chartqa"].published
        if f"{one['model']} ({one['source']})" == wanted
    )
    assert page.text("[data-beside=benchmark-chartqa]") == score


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_as_wide_as_the_window(browser: Any, evaluation: Written, width: int, dark: bool):
    page = Page(browser, "")
    with page.screen(width, 1000, dark=dark):
        page = opened(browser, evaluation.page)
        for name in ("chartqa", "nextqa", "drawn"):
            started(page, f"#benchmark-{name} .browser")
        assert page.script("document.documentElement.scrollWidth") <= width
        ground = page.script("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(18, 18, 23)" if dark else "rgb(251, 250, 248)")
        keep(page, f"evaluation-{width}-{'dark' if dark else 'light'}", width)


def keep(page: Page, name: str, width: int) -> None:
    """The whole page as a picture, where screenshots are wanted."""
    if folder := os.environ.get("CASA_SCREENSHOTS"):
        height = page.script("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 6000), "scale": 1}
        shot = {"captureBeyondViewport": True, "clip": clip}
        data = page.driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]
        Path(folder, f"{name}.png").write_bytes(base64.b64decode(data))


def test_five_thousand_rows_are_filtered_at_once(browser: Any, tmp_path: Path):
    rows = [
        {
            "at": at,
            "id": f"q{at}",
            "category": "ab"[at % 2],
            "prompt": f"What is number {at} of all? " * 10,
            "truths": [str(at)],
            "pictures": [0],
            "answers": [{"text": str(at), "note": "", "kind": "right"}],
            "kinds": ["right"],
            "value": "1",
        }
        for at in range(5000)
    ]
    picture = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    options: Any = {
        "answers": ["answer"],
        "value": "score",
        "kinds": {"right": "Right"},
        "orders": {"first": "Worst"},
    }
    path = tmp_path / "page.html"
    path.write_text(
        whole_page("many", tag("section", browser_of(rows, [picture], **options), id="benchmark-drawn"))
    )
    page = opened(browser, path)
    started(page)
    assert page.text(f"{DRAWN} output") == "1 to 25 of 5,000; 5,000 of 5,000 with pictures"
    began = time.monotonic()
    choose(page, "text", "number 4321 of")
    assert page.count(f"{DRAWN} tbody tr") == 1
    choose(page, "category", "b")
    choose(page, "text", "")
    assert " of 2,500;" in page.text(f"{DRAWN} output")
    assert time.monotonic() - began < 3


def test_a_comparison_shows_the_changed_questions_with_both_answers(
    browser: Any, evaluation: Written, tmp_path: Path
):
    other = tmp_path / "other"
    own = next(one for one in evaluation.tables if one.benchmark.name == "drawn")
    write_evaluation(other, own, lambda at, question: "red", name="other")
    found, _ = compare_folders(evaluation.folder, other)
    path = tmp_path / "against.html"
    path.write_text(render(found, ("m", "other"), pictures=20))
    page = opened(browser, path)
    for width in WIDTHS:
        with page.screen(width, 1000):
            page = opened(browser, path)
            started(page)
            assert page.script("document.documentElement.scrollWidth") <= width
            keep(page, f"comparison-{width}", width)
    [one] = found
    assert f" of {len(one.changed)}; 20 of {len(one.changed)} with pictures" in page.text(f"{DRAWN} output")
    values = column(page, "A - B")
    assert values[0] == "-1"
    choose(page, "order", "last")
    assert column(page, "A - B")[0] == "+1"
    assert column(page, "A: m")[0].startswith("✓")
    assert column(page, "B: other")[0].startswith("✗ red")
    assert json.loads(page.script(f"document.querySelector('{DRAWN} script').textContent"))["pictures"]
    assert page.problems() == []
