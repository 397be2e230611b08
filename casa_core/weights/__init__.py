"""Weights in and out: from published backbones, from other layouts, checkpoint folders."""
