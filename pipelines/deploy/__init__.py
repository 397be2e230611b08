"""The deploy stage: a checkpoint as a Ray Serve application."""
