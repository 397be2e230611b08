"""Pictures by their addresses: from hosts that are listed, never from inside the network."""
