"""The reasoning gateway: OpenAI-compatible and native APIs in front of in-process vLLM engines."""

__version__ = "0.1.0"
