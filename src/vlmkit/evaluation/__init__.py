"""Benchmark rows to scores and reports."""
