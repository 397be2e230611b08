"""Attempts at a stage: the process of one and how it ended, and whether another follows."""
