"""Uploaded pictures, kept for some minutes."""
