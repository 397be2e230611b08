"""Documented layouts of benchmarks: columns and their checks, and how a row becomes a question."""
