"""Tests that need no engine; seconds."""
