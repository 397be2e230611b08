"""Sections of the report: each is a function from `Run` to `Html`, also for a run without its artifact."""
