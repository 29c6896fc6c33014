"""The list of mutants: every entry can be applied, and a mutant that no test notices is reported."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

_spec = importlib.util.spec_from_file_location("mutants", REPOSITORY / "scripts" / "mutants.py")
assert _spec is not None
assert _spec.loader is not None
mutants = importlib.util.module_from_spec(_spec)
sys.modules["mutants"] = mutants
_spec.loader.exec_module(mutants)

ALL = mutants.load_mutants()


def test_names_are_unique():
    names = [mutant.name for mutant in ALL]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_an_entry_applies_and_names_tests_that_exist(mutant):
    mutant.apply((REPOSITORY / mutant.file).read_text(encoding="utf-8"))
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        text = (REPOSITORY / file).read_text(encoding="utf-8")
        assert not name or re.search(rf"^def {re.escape(name.partition('[')[0])}\(", text, re.MULTILINE), test


def test_days_in_a_row_go_through_the_whole_list():
    drawn = [mutant.name for day in range(100) for mutant in mutants.draw_sample(ALL * 7, 3, day)]
    assert {mutant.name for mutant in ALL} == set(drawn)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "test_sums.py").write_text(
        "from sums import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n\n\ndef test_weak():\n    assert add(0, 0) == 0\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("after", "test", "verdict"),
    [
        ("a - b", "test_add", "caught"),
        ("a - b", "test_weak", "survived"),
        ("a - b", "test_missing", "invalid"),
        ("a - ", "test_add", "invalid"),
    ],
)
def test_verdicts(project, after, test, verdict):
    mutant = mutants.Mutant(name="m", file="src/sums.py", before="a + b", after=after, tests=(f"test_sums.py::{test}",))
    assert mutants.judge(mutant, project)[0] == verdict
    assert "a + b" in (project / "src" / "sums.py").read_text()  # taken back


def test_an_entry_whose_place_is_gone_is_invalid(project):
    mutant = mutants.Mutant(name="m", file="src/sums.py", before="a * b", after="a", tests=("test_sums.py",))
    verdict, detail = mutants.judge(mutant, project)
    assert verdict == "invalid"
    assert "occurs 0 times in src/sums.py" in detail
