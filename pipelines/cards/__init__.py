"""HTML pages made on demand: data cards, one packed sequence, inspection of a checkpoint."""
