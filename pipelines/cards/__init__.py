"""HTML views made on demand: data cards, one packed sequence, what a checkpoint attends to."""
