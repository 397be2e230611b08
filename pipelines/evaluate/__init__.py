"""What a trained model is worth: held-out benchmarks beside chance and beside a model without pictures."""

HELD_OUT = "test"
"""The split that is never trained on."""
