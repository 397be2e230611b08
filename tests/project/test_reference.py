"""docs/reference/ is what the code says: commands, keys of a recipe, routes and metrics."""

from __future__ import annotations

import pytest

from docs import reference


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_of_the_reference_is_that_of_the_code(name: str):
    written = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert written == reference.PAGES[name](), "python -m docs.reference"


def test_every_command_key_and_route_is_there():
    from pipelines.recipe import Recipe
    from tests.support.cli.walk import leaves

    pages = {name: (reference.FOLDER / name).read_text(encoding="utf-8") for name in reference.PAGES}
    assert [leaf for leaf in leaves() if f"\n## casa {leaf}\n" not in pages["commands.md"]] == []
    definitions = Recipe.model_json_schema()["$defs"].values()
    keys = {key for section in definitions for key in section.get("properties", {})} | set(
        Recipe.model_fields
    )
    assert sorted(key for key in keys if f"| `{key}` |" not in pages["recipe.md"]) == []
    for path in ("/v1/chat/completions", "/v1/live", "/v1/captions", "/metrics"):
        assert f"`{path}`" in pages["http.md"]
