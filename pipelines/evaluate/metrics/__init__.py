"""Scores of answers and live captions, with confidence intervals."""
