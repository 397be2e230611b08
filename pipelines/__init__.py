"""From raw corpora to an evaluated, deployed model: stages, recipes and the command line."""
