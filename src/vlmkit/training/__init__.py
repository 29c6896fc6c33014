"""Batch to loss, and everything that happens around a step."""
