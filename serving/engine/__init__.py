"""One vLLM engine and the link to it. vLLM and torch are imported on the replica's side only."""
