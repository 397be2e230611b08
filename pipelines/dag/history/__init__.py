"""What a store's artifacts tell: what each was made of, what sets two apart, what is no longer used."""
