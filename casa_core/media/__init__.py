"""Encoded pictures and video to pixels: the one decoding that training, evaluation and serving share."""
