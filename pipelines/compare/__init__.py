"""What a sweep's models are worth beside each other."""
