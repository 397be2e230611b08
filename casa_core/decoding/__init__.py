"""Cached inference: KV caches, batches of growing sequences, the plan of one forward, snapshots."""
