"""What a trained model is worth: held-out benchmarks beside chance and beside a model without pictures."""
