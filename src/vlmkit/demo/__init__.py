"""The embedded defaults: tiny checkpoints, the shapes manifest and benchmark, made in place."""
