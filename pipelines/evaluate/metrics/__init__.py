"""Scores of answers and captions, with their confidence intervals."""
