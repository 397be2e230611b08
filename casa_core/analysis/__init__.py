"""Looking into a fused model: what its fusion layers attend to, and what it says when they may not."""
