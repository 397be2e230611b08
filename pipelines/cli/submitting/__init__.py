"""``casa submit``, and what it starts on the cluster."""
