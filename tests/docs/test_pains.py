"""The list of planted failures is whole, and names files that are there."""

from __future__ import annotations

import re
from pathlib import Path

PAINS = Path(__file__).parents[1] / "pains"
ROWS = re.findall(r"^\| (\d+) \|[^|]*\|([^|]*)\|([^|]*)\|$", (PAINS / "README.md").read_text(), flags=re.MULTILINE)


def test_every_number_has_a_test():
    numbers = [int(number) for number, _, _ in ROWS]
    assert numbers[:25] == list(range(1, 26))
    assert numbers == sorted(set(numbers))
    for number, planted, _ in ROWS:
        assert all(name.startswith(f"test_{int(number):02}_") for name in re.findall("`([^`]*)`", planted)), number


def test_every_file_is_listed_and_every_listed_one_is_there():
    told = {name for _, planted, _ in ROWS for name in re.findall("`([^`]*)`", planted)}
    assert told == {path.name for path in PAINS.glob("test_*.py")}
    others = {name for _, _, also in ROWS for name in re.findall("`([^`]*)`", also)}
    assert all((PAINS / name).is_file() for name in others)
