"""Planning before spending: estimates of memory, operations, time and disk; dry runs, corpus forecasts."""
