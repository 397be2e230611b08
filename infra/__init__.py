"""What a run stands on: the local Ray head, checks of the machine, and a client for the endpoint."""
