"""Static pages: what is trained on, what was answered."""
