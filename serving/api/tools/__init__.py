"""How models write tool calls: one small file for each format, found by name in `registry`."""
