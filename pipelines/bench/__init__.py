"""Load for an endpoint, at times planned before the run, and what became of it."""
