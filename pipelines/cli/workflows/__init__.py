"""Commands that hand a recipe to other systems."""
