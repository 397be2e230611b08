"""Readers of published corpora, one file each: copy one to add a corpus."""
