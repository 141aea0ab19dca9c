"""Benchmarks: one load generator, one side-by-side comparison, one table. See bench/README.md."""
