"""Bounded thinking: how long, and how it ends in an answer."""
