"""What a run would need, worked out before it starts."""
