"""Scores of answers and live captions: one rule a file, with confidence intervals and paired tests."""
