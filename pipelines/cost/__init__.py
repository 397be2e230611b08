"""What a run takes, before it is spent: memory, operations, time, disk; dry runs and corpus forecasts."""
