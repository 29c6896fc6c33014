"""One file per benchmark: its rows to cases. Knows no model."""
