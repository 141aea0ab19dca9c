"""Profiles (what to run and how) and the builders of the models that no hub is needed for."""
