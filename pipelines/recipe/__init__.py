"""A run as one validated object: what is to be made, and on what it runs."""

from pipelines.recipe.load import list_recipes, load_recipe
from pipelines.recipe.model import Recipe
from pipelines.recipe.stages import build_stages

__all__ = ["Recipe", "build_stages", "list_recipes", "load_recipe"]
