"""Filters that a recipe declares: which clean samples are left out, by columns and hashes."""
