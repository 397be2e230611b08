"""Small corpora made on the spot, written in the published layouts of the large ones."""
