"""The table of silent errors names tests that are there, and none twice for nothing."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SECTION = (TESTS / "README.md").read_text(encoding="utf-8").split("## Silent errors", 1)[1]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+|\*)`", SECTION)))
ROWS = [
    row for row in re.findall(r"^\| (.*) \| (.*) \|$", SECTION, flags=re.MULTILINE) if row[1] not in ("test", "---")
]


def names_in(path: Path) -> set[str]:
    """Names of the test functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize(("file", "name"), [pytest.param(*one, id="::".join(one)) for one in NAMED])
def test_a_named_test_is_there(file, name):
    found = names_in(TESTS / file)
    assert found if name == "*" else name in found


def test_every_error_has_a_test():
    assert len(ROWS) > 35
    for error, test in ROWS:
        assert re.search(r"`[\w/]+\.py::", test), error
        assert all("::" in one for one in re.findall(r"`([^`]*\.py[^`]*)`", test)), f"{error}: name the function too"
