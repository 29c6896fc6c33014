"""Manifests to batches."""
