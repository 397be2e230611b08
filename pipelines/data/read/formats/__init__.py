"""Container formats of raw corpora: parquet, JSON lines, JSON arrays, WebDataset tar shards."""
