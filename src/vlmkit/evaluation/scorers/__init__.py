"""Case and answer text to score: pure functions, no torch."""
