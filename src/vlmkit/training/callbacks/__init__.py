"""Observers of a training run, one a file."""
