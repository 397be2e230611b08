"""Raw corpora to packed Arrow: read or generate, clean, filter, pack; store holds what lies in between."""
