"""A chat-completion server: Ray Serve fronts before a pool of vLLM engines."""

__version__ = "0.1.0"
