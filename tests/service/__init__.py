"""Tests against a real server with real engines."""
