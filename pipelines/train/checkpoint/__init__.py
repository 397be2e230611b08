"""Training checkpoints: saving, resuming on any number of workers, exporting. All that touches DeepSpeed's privates."""
