"""Metrics observe every layer and are imported by none of them: `app` and `deployment` put them together."""
