"""Pages about evaluations: scores beside published ones, and every answer with its picture."""
