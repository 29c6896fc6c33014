"""Rows are picked as asked, and named as people count them."""

from __future__ import annotations

import pytest

from vlmkit.errors import ConfigError
from vlmkit.pages.choosing import find_rows, pick_rows


@pytest.fixture
def index(prepare, manifest):
    other = manifest.with_name("other.jsonl")
    other.write_text('{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n' * 3)
    return prepare(sources=[manifest, {"path": other, "name": "more"}]).index


def test_first_random_and_longest(index):
    assert pick_rows(index, pick="first", num_samples=3, seed=0) == [0, 1, 2]
    longest = pick_rows(index, pick="longest", num_samples=2, seed=0)
    assert longest[0] == 7
    assert index.num_tokens[longest[1]] == sorted(index.num_tokens.tolist())[-2]
    drawn = pick_rows(index, pick="random", num_samples=5, seed=1)
    assert drawn == pick_rows(index, pick="random", num_samples=5, seed=1) == sorted(set(drawn))
    assert drawn != pick_rows(index, pick="random", num_samples=5, seed=2)
    assert len(pick_rows(index, pick="first", num_samples=100, seed=0)) == len(index) == 12


def test_rows_by_number_and_by_manifest(index, manifest):
    assert find_rows(index, [3, "12", "other.jsonl:1", "more:2", f"{manifest}:9", "rows:1"]) == [2, 11, 9, 10, 8, 0]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (0, "there is no row 0; rows are 1 to 12"),
        ("13", "there is no row 13"),
        ("rows.json:10", "rows.json has the rows 1 to 9, not 10"),
        ("none.json:1", "no manifest is called 'none.json'. There are: .*rows.json"),
        ("rows.json", "'rows.json' is neither a row number nor FILE:ROW"),
    ],
)
def test_rows_that_are_not_there(index, wanted, message):
    with pytest.raises(ConfigError, match=message):
        find_rows(index, [wanted])


def test_wrong_ways_to_pick(index):
    with pytest.raises(ConfigError, match="inspect.pick=last: choose one of first, random, longest"):
        pick_rows(index, pick="last", num_samples=1, seed=0)
    with pytest.raises(ConfigError, match="inspect.num_samples=0"):
        pick_rows(index, pick="first", num_samples=0, seed=0)
