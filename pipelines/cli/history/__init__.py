"""Commands about how a store's artifacts came to be."""
