"""Composition roots: config in, objects wired, a result returned."""
