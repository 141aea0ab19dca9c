"""The documentation, and the script that prints its tables from code."""
