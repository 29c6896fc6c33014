"""Levenshtein distance."""

from __future__ import annotations


def edit_distance(first: str, second: str) -> int:
    """Fewest insertions, deletions and replacements of single characters that turn one text into the other."""
    previous = list(range(len(second) + 1))
    for row, character in enumerate(first, start=1):
        current = [row]
        for column, other in enumerate(second, start=1):
            replaced = previous[column - 1] + (character != other)
            current.append(min(replaced, previous[column] + 1, current[-1] + 1))
        previous = current
    return previous[-1]
