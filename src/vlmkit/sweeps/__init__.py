"""Several runs that differ in a few settings: their processes, their names, their results, their ranking."""
