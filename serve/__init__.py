"""HTTP and WebSocket endpoints over the inference engine."""
