"""Clean and pack artifacts on disk or S3: rows, shards, quarantine, readers and writers."""
