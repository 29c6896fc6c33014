"""Every message that a user can meet stands in the documentation with its remedy, as the code has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.conftest import environment
from vlmkit.cli.errors import Message, messages, page, split

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found() -> list[Message]:
    return messages()


def test_the_page_is_the_generated_one():
    written = (REPOSITORY / "docs" / "errors.md").read_text(encoding="utf-8")
    assert written == page(), "make tables writes it"


def test_every_message_says_what_to_do(found):
    bare = [f"{one.place}: {one.finding}" for one in found if not one.remedy]
    assert bare == [], "say what to do in a sentence that begins with a verb"


def test_messages_of_every_room_are_found(found):
    assert len(found) > 250
    assert {one.room for one in found} >= {"cli", "config", "data", "processing", "model", "training", "evaluation"}
    everything = "\n".join(f"{one.finding} {one.remedy}" for one in found)
    for told in (
        "no such setting",  # made by a function that explains Hydra's errors
        "Nothing was written",  # handed to the constructor of the parent class
        "optim.schedule must be one of",  # a ValueError in a constructor
        "holds out all",  # a ValueError that a caller turns into one of ours
        "is an absolute path",  # put together from several strings
        "its first row has the fields",  # chosen from two by a condition
    ):
        assert told in everything, told
    assert "the power is too large" not in everything, "scorers count what they cannot read, and tell nobody"


@pytest.mark.parametrize(
    ("text", "finding", "remedy"),
    [
        ("x is not there. Check the path.", "x is not there.", "Check the path."),
        ("a is b: choose c", "a is b: choose c", "choose c"),
        ("x=1: wanted a number, got a text.", "x=1: wanted a number, got a text.", "wanted a number, got a text."),
        ("a.b must lie in 0..1, got ‹v›", "a.b must lie in 0..1, got ‹v›", "a.b must lie in 0..1"),
        ("It failed. Set save.best, or raise it.", "It failed.", "Set save.best, or raise it."),
        ("save.best=‹v› is not measured. Measured: a.", "save.best=‹v› is not measured. Measured: a.", ""),
        ("no option. Did you mean a? There are: a, b.", "no option.", "Did you mean a? There are: a, b."),
        ("The loss is nan. Nothing was saved.", "The loss is nan. Nothing was saved.", ""),
    ],
)
def test_a_message_is_split_where_the_remedy_begins(text, finding, remedy):
    assert split(text) == (finding, remedy)


def test_a_message_without_a_remedy_is_found_in_code(tmp_path):
    """The source of a small package: what is raised, returned or wrapped is read, by class and not by name."""
    (tmp_path / "data").mkdir()
    (tmp_path / "errors.py").write_text("class VlmkitError(Exception): ...\nclass OwnError(VlmkitError): ...\n")
    (tmp_path / "data" / "rows.py").write_text(
        "def read(path, n):\n"
        "    if n:\n"
        "        raise OwnError(f'{path}: {len(n)} rows. Drop some.')\n"
        "    if path:\n"
        "        return OwnError(f'{path.name} is bad.')\n"
        "    raise KeyError('not for users')\n"
        "class Plan:\n"
        "    def __init__(self, n):\n"
        "        if n < 0: raise ValueError(f'n must be 0 or more, got {n}')\n"
        "def pure(n):\n"
        "    raise ValueError('not told to anybody')\n"
    )
    assert [(one.finding, one.remedy, one.place) for one in messages(tmp_path)] == [
        ("n must be 0 or more, got ‹n›", "n must be 0 or more", "data/rows.py:9"),
        ("‹name› is bad.", "", "data/rows.py:5"),
        ("‹path›: ‹number of n› rows.", "Drop some.", "data/rows.py:3"),
    ]


def test_the_page_is_printed_without_importing_torch():
    code = "import sys, runpy; runpy.run_module('vlmkit.cli.errors', run_name='__main__'); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == page()
