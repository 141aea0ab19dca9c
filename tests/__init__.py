"""Tests: `unit` needs no engine, `service` drives a real server with real engines."""
