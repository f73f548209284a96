"""Real clients, unmodified, each in its own environment, against the real server."""
