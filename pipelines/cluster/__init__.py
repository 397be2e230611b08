"""A Ray cluster checked before a run is spent on it."""
