"""What a deployment shows of itself: metrics, one log line per request and session, the route of both."""
