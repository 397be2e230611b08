"""The clean stage: records of a corpus, decoded, checked and written to model-independent shards."""
