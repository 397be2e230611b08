"""Training checkpoints: save, resume on any number of workers, export; all use of DeepSpeed's internals."""
